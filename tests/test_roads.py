"""Our agent loop for verl, against `rollout()`: with stand-ins for the three names of verl that it uses, and
a server made of Hugging Face's own `generate`."""

import asyncio
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, both_families, call, in_own_frame

from config import PAPER_LIMITS, rollout_limits
from data import Sample, load
from model import load_model
from reward import score
from rollout import rollout
from select_data import verl_row
from training.settle import read_config

LIMITS = {
    "look_pixels": 12544,
    "crop_pixels": 12544,
    "max_turns": 3,
    "max_turn_tokens": 40,
    "max_tokens": 200,
}


class AgentLoopBase:
    """What verl's hands to a loop: the config, the server, asyncio's loop."""

    def __init__(self, config, server):
        self.config = config
        self.rollout_config = config.actor_rollout_ref.rollout
        self.server_manager = server
        self.loop = asyncio.get_running_loop()


@pytest.fixture
def zoom_loop(monkeypatch):
    names = ("verl", "verl.experimental", "verl.experimental.agent_loop")
    for name in (*names, "verl.experimental.agent_loop.agent_loop"):
        module = ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    module.AgentLoopBase = AgentLoopBase
    module.AgentLoopOutput = SimpleNamespace
    module.register = lambda name: lambda loop: loop
    monkeypatch.delitem(sys.modules, "roads.verl.zoom_loop", raising=False)
    from roads.verl import zoom_loop

    return zoom_loop


class Server:
    """verl's `generate`: token ids and images in, token ids and logprobs out. turns: what to say instead."""

    def __init__(self, model, processor, turns=None, keeps_ends=False):
        self.model = model
        self.processor = processor
        self.turns = turns
        self.keeps_ends = keeps_ends

    async def generate(self, request, *, prompt_ids, sampling_params, image_data):
        ids = torch.tensor([prompt_ids])
        most = sampling_params["max_tokens"]
        if self.turns:
            said = next(self.turns)
            said = said if said.endswith("</tool_call>") else said + "<|im_end|>"
            tokens = self.processor.tokenizer(said, add_special_tokens=False)["input_ids"][:most]
            return SimpleNamespace(token_ids=tokens, log_probs=[-1.0] * len(tokens))
        pixels = self.processor.image_processor(image_data, return_tensors="pt")
        written = self.model.generate(
            input_ids=ids, **pixels, max_new_tokens=most, do_sample=False,
            mm_token_type_ids=(ids == self.processor.image_token_id).int(),
            eos_token_id=sampling_params["stop_token_ids"],
            suppress_tokens=list(sampling_params["logit_bias"]),
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        tokens = written.sequences[0, len(prompt_ids) :].tolist()
        logprobs = [logits[0].log_softmax(-1)[token].item() for logits, token in zip(written.logits, tokens)]
        keep = len(tokens) - self.keeps_ends
        return SimpleNamespace(token_ids=tokens[:keep], log_probs=logprobs[:keep])


def on_verl(zoom_loop, monkeypatch, processor, server, samples, **given):
    """Each sample's output, its row as the export writes it and verl's reader opens it."""
    monkeypatch.setattr(zoom_loop, "own_processor", lambda folder: processor)
    lengths = SimpleNamespace(prompt_length=given.pop("prompt_length", 1000), response_length=200)
    config = SimpleNamespace(
        actor_rollout_ref=SimpleNamespace(model=SimpleNamespace(path=""), rollout=lengths)
    )

    async def work():
        outputs = []
        for number, sample in enumerate(samples):
            row = verl_row(sample, number)
            image = {"type": "image", "image": sample.open()}
            row["raw_prompt"] = [{"content": [image, {"type": "text", "text": row["prompt"][1]["content"]}]}]
            loop = zoom_loop.ZoomLoop(config, server, limits=LIMITS | given)
            outputs.append(await loop.run({"logprobs": True, "temperature": 0.0}, **row))
        return outputs

    return asyncio.run(work())


def check_same(outputs, trajectories) -> None:
    for output, trajectory in zip(outputs, trajectories, strict=True):
        assert output.prompt_ids == trajectory.prompt_ids
        assert output.response_ids == trajectory.completion_ids
        assert output.response_mask == trajectory.sampled
        assert output.reward_score == score(trajectory).total
        images = output.multi_modal_data["images"]
        assert [image.tobytes() for image in images] == [image.tobytes() for image in trajectory.images]


def test_it_is_our_rollout(zoom_loop, monkeypatch):
    """Greedy, by the tiny base: ids, masks, images, rewards; logprobs within rounding."""
    model, processor = load_model("tiny")
    samples = load("toy", split="test", limit=6)
    samples.append(Sample("plain", samples[0].image, samples[0].question, samples[0].answer, tool=False))
    outputs = on_verl(zoom_loop, monkeypatch, processor, Server(model, processor), samples)
    trajectories = rollout(model, processor, samples, temperature=0.0, engine="generate", **LIMITS)
    check_same(outputs, trajectories)
    for output, trajectory in zip(outputs, trajectories):
        gaps = torch.tensor(output.response_logprobs) - torch.tensor(trajectory.logprobs)
        assert gaps.abs().max() < 1e-4
    assert not trajectories[-1].calls


@both_families
def test_zooms_errors_and_budgets(zoom_loop, monkeypatch, model, processor, samples, script):
    """Scripted turns: a zoom and an answer; an error; no tool on the row; a completion without room."""
    zoom = f"<think>x</think>{call(20, 20, 60, 60)}"
    wrong = f"<think>x</think>{call(60, 60, 20, 20)}"
    answer = "<think>x</think><answer>A</answer>"
    for turns, given, asked in (
        ((zoom, answer), {}, samples[0]),
        ((wrong, zoom, answer), {}, samples[1]),
        ((answer,), {}, Sample("p", samples[0].image, "Which?", "A", options=("A", "B"), tool=False)),
        ((zoom, zoom, zoom), {"max_tokens": 60}, samples[2]),
    ):
        limits = LIMITS | {"look_pixels": 65536, "crop_pixels": 65536} | given
        said = [in_own_frame(turn, processor.family.frame) for turn in turns]
        server = Server(model, processor, turns=iter(said))
        outputs = on_verl(zoom_loop, monkeypatch, processor, server, [asked], **limits)
        planned = iter(turns)
        script(lambda rng, planned=planned: next(planned))
        check_same(outputs, rollout(model, processor, [asked], temperature=0.0, engine="generate", **limits))


def test_a_server_that_keeps_the_ends_is_an_error(zoom_loop, monkeypatch):
    model, processor = load_model("tiny")
    server = Server(model, processor, keeps_ends=True)
    with pytest.raises(RuntimeError, match="without the id that ended it"):
        on_verl(zoom_loop, monkeypatch, processor, server, load("toy", limit=1))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"max_tokens": 201}, "completions may have 201 tokens: raise data.max_response_length"),
        ({"prompt_length": 10}, "row toy-train-0-0: its prompt has .* raise data.max_prompt_length"),
    ],
)
def test_what_verl_has_no_room_for_is_an_error(zoom_loop, monkeypatch, given, said):
    model, processor = load_model("tiny")
    with pytest.raises(ValueError, match=said):
        on_verl(zoom_loop, monkeypatch, processor, Server(model, processor), load("toy", limit=1), **given)


def test_the_processor_of_a_name(zoom_loop):
    """verl's config keeps the name that it was given, a folder's or one of the Hub."""
    assert zoom_loop.own_processor("tiny").family.model_type == "qwen2_5_vl"


def test_its_config_names_it(zoom_loop):
    ours, papers = yaml.safe_load((ROOT / "roads/verl/zoom_loop.yaml").read_text())
    for record in (ours, papers):
        assert record["_target_"] == f"{zoom_loop.ZoomLoop.__module__}.ZoomLoop"
    big = rollout_limits(read_config(["--model", "qwen2.5-vl-3b"]))
    assert big == big | ours["limits"]
    assert papers["limits"] == PAPER_LIMITS
