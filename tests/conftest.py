"""What the tests share: a random tiny model and a scripted policy on top of it."""

import json
import os
import random
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

# Exactness is that of float32 on a CPU; doctor.py checks a GPU
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pytest
import torch
from tokenizers import AddedToken
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import rollout
import tools
from data import Sample
from engine.families import QWEN2_5_VL, QWEN3_VL
from engine.slots import GROWTH, SlotCache, SlotEngine
from machine import memory_estimate
from model import ZoomProcessor
from toy.tiny import make_model, make_processor
from toy.world import random_scene, render

torch.set_num_threads(1)

LOOK_SIDE = 112  # pixels of the look in whose frame the scripted boxes are written
# A test with this mark runs for both families; without it, for Qwen2.5-VL.
both_families = pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"], indirect=True)


@pytest.fixture(scope="session")
def family(request):
    """The name of the family that `processor` and `model` are of."""
    return getattr(request, "param", QWEN2_5_VL.model_type)


def make_tiny_processor(family: str) -> ZoomProcessor:
    """The tiny base's tokenizer, and images as the family wants them: small ones allowed."""
    processor = make_processor()
    if family == QWEN3_VL.model_type:
        # As the tiny base's tokenizer knows its own prompt: as one token, or it would be long.
        prompt = tools.in_frame(tools.TOOL_SYSTEM, tools.RELATIVE)
        processor.tokenizer.add_tokens([AddedToken(prompt, special=False, normalized=False)])
        sizes = {"min_pixels": 64 * 64, "max_pixels": 1280 * 32 * 32}
        images = Qwen2VLImageProcessorPil(**QWEN3_VL.image_processor_kwargs | sizes)
        processor = ZoomProcessor(images, processor.tokenizer, model_type=family)
    return processor


def make_tiny_model(family: str, tokenizer):
    """A random tiny model. Qwen3-VL's has a head size apart from its width, and three levels of DeepStack on
    four layers; its weights are enlarged as those of the tiny base are, so that every part counts."""
    if family == QWEN2_5_VL.model_type:
        return make_model(tokenizer)
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]}
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4096,
            rope_parameters=rope | {"mrope_interleaved": True}, pad_token_id=ids("<|endoftext|>"),
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=4, hidden_size=64, intermediate_size=96, num_heads=2, patch_size=16, out_hidden_size=64,
            num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2],
        ),
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model


@pytest.fixture(scope="session")
def processor(family):
    return make_tiny_processor(family)


@pytest.fixture(scope="session")
def model(family, processor):
    torch.manual_seed(0)
    return make_tiny_model(family, processor.tokenizer).eval()


@pytest.fixture(scope="session")
def images():
    """Images of different shapes, each of one colour pattern of its own."""
    rng = random.Random(5)
    scenes = [render(random_scene(rng)) for _ in range(3)]
    return [scenes[0], scenes[1].crop((0, 0, 1008, 600)), scenes[2].crop((100, 0, 500, 1000))]


@pytest.fixture(scope="session")
def samples(images):
    return [
        Sample(
            id=f"s{i}",
            image=image,
            question=f"What letter is on the {c} tile?",
            answer="A",
            boxes=((300.0, 300.0, 390.0, 390.0),),
            meta={"kind": "read"},
        )
        for i, (image, c) in enumerate(zip(images, ("red", "green", "blue")))
    ]


def check_planned_cache(config, parts: dict, slots: int, longest: int) -> None:
    """The planned keys and values are those that a cache of so many slots takes, but for its growth."""
    cache = SlotCache(config, slots, "cpu", torch.bfloat16)
    cache.reserve(longest)
    held = sum(buffer.nbytes for buffer in (*cache.keys, *cache.values))
    planned = parts["rollout: keys and values"] * memory_estimate.GB
    assert planned <= held <= planned * (1 + GROWTH / longest)


def made_calls(boxes=(), errors=()) -> list[tools.Call]:
    """The calls of a trajectory: zooms that came back, on these regions, then refused ones."""
    zooms = [tools.Call(tools.TOOL, region=box) for box in boxes]
    return zooms + [tools.Call(error=text) for text in errors]


def call(*box, name="image_zoom_in_tool") -> str:
    numbers = ",".join(map(str, box))
    return f'<tool_call>{{"name": "{name}", "arguments": {{"bbox_2d": [{numbers}]}}}}</tool_call>'


def in_own_frame(turn: str, frame) -> str:
    """A scripted turn whose boxes are written in the frame of the look, in the frame of the family."""
    if frame != tools.RELATIVE:
        return turn

    def scaled(match):
        numbers = [round(float(v) * 1000 / LOOK_SIDE) for v in match[1].split(",")]
        return f'"bbox_2d": [{",".join(map(str, numbers))}]'

    return re.sub(r'"bbox_2d": \[([\d.,]+)\]', scaled, turn)


@pytest.fixture
def script(monkeypatch, processor):
    """script(turns): replaces the sampling of both engines by what `turns(rng)` returns for each row's next
    turn; logprobs stay the model's own.

    A turn is a text; without a closing </tool_call> it is ended by <|im_end|>, unless it is a list of ids,
    taken as it is.
    """
    plain = rollout.LogprobRecorder

    def to_ids(turn):
        if isinstance(turn, list):
            return turn
        turn = in_own_frame(turn, processor.family.frame)
        turn += "" if turn.endswith("</tool_call>") else "<|im_end|>"
        return processor.tokenizer(turn, add_special_tokens=False)["input_ids"]

    def install(turns):
        rng, plans = random.Random(0), {}

        class ScriptedRecorder(plain):
            plan = None

            def __call__(self, input_ids, scores):
                scores = super().__call__(input_ids, scores)
                if self.plan is None:
                    self.plan, self.step = [to_ids(turns(rng)) for _ in range(len(scores))], 0
                forced = torch.full_like(scores, -torch.inf)
                for row, ids in enumerate(self.plan):
                    forced[row, ids[min(self.step, len(ids) - 1)]] = 0.0
                self.step += 1
                return forced

        def choose(engine, scores):
            tokens = []
            for slot in engine.live:
                trajectory = engine.env.trajectories[slot.trajectory]
                key = id(trajectory), len(trajectory.turns)
                if key not in plans:  # the trajectory is kept, so that its id stays taken
                    plans[key] = (trajectory, to_ids(turns(rng)))
                ids = plans[key][1]
                tokens.append(ids[min(slot.written, len(ids) - 1)])
            return torch.tensor(tokens)

        monkeypatch.setattr(rollout, "LogprobRecorder", ScriptedRecorder)
        monkeypatch.setattr(SlotEngine, "choose", choose)

    return install


@pytest.fixture
def here(monkeypatch, capsys):
    """here("eval.py", "--typo"): the whole script in this process, for mistakes that end it soon.

    A process of its own would import torch for seconds.
    """

    def run(name, *argv, cwd=ROOT):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        monkeypatch.chdir(cwd)
        code = 0
        threads = torch.get_num_threads()
        environment = dict(os.environ)
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        finally:  # the tests after this one, and their own processes
            torch.set_num_threads(threads)
            os.environ.clear()
            os.environ.update(environment)
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return run


# --------------------------------------------------------------------------------------------------
# A random tiny Qwen3-VL as a folder that the commands take.

# preprocessor_config.json of Qwen/Qwen3-VL-2B, -4B and -8B-Instruct.
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def write_files(folder, config: dict, tokenizer) -> None:
    """The small files of a folder in the Hub's layout."""
    tokenizer.save_pretrained(folder)
    for name, content in {
        "config.json": config,
        "preprocessor_config.json": PREPROCESSOR,
        "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor"},
        "generation_config.json": {"do_sample": True, "top_k": 20, "repetition_penalty": 1.5},
        "chat_template.json": {"chat_template": "{{ messages[0].content }}"},
    }.items():
        (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory):
    """A random tiny Qwen3-VL as a folder that the commands take."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    torch.manual_seed(0)
    processor = make_tiny_processor("qwen3_vl")
    make_tiny_model("qwen3_vl", processor.tokenizer).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    write_files(folder, config, processor.tokenizer)
    return folder
