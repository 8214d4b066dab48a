"""The rollout against independent slow paths: one uncached forward per trajectory, and crops cut by hand."""

import copy
import os
import random
import re
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, both_families, call, made_calls
from PIL import Image, ImageChops
from scripts import run_script

import tools
from config import Limits
from data import Sample, load
from engine import graph as graph_module
from engine import slots as slots_module
from engine import workers as workers_module
from engine.inputs import encode_images
from engine.lora import cast_lora, master_lora, merged_lora
from engine.slots import SlotEngine
from evaluation import scores
from model import add_lora
from options import controls
from rollout import Trajectory, ZoomEnv
from rollout import rollout as plain_rollout

LOOK, CROP = 112 * 112, 134 * 134
LIMITS = dict(max_turn_tokens=40, max_tokens=420, look_pixels=LOOK, crop_pixels=CROP)


ENGINES = {"generate": {"engine": "generate"}, "slots": {"engine": "slots"}}
ENGINES["workers"] = {"engine": "slots", "threads": 2}


@pytest.fixture(params=ENGINES)
def rollout(request):
    """Every test holds for both engines, and for slots in two processes."""
    return lambda *args, **kwargs: plain_rollout(*args, **ENGINES[request.param] | kwargs)


def full_logprobs(model, processor, trajectory):
    """Logprobs of the completion from one forward pass over the whole trajectory, without any cache."""
    ids = torch.tensor([trajectory.prompt_ids + trajectory.completion_ids])
    pixels = processor.image_processor(trajectory.images, return_tensors="pt")
    with torch.no_grad():
        logits = model(
            input_ids=ids, mm_token_type_ids=(ids == processor.image_token_id).int(), **pixels
        ).logits[0]
    start = len(trajectory.prompt_ids)
    return logits[start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]


def random_turn(rng: random.Random) -> str:
    """A zoom, a broken call, an answer or an end without either: trajectories of zero to three zooms,
    that end at any turn."""
    x, y = rng.randint(0, 60), rng.randint(0, 50)
    return rng.choice(
        [
            call(x, y, x + rng.randint(14, 50), y + rng.randint(14, 60)),
            call(x, y, x + 30, y + 30),
            "<think> red</think>" + call(5, 5, 100, 100),
            call(50, 50, 20, 20),
            call(1, 2, 3, name="rotate"),
            "<think> red=A</think><answer>A</answer>",
            "<think> hm</think>",
        ]
    )


PLAYED = {}  # by engine and family: tests read the same trajectories


@pytest.fixture
def trajectories(request, family, rollout, model, processor, samples, script):
    key = (request.node.callspec.params["rollout"], family)
    if key not in PLAYED:
        script(random_turn)
        limits = {"group": 8, "max_turns": 4, "seed": 3} | LIMITS
        PLAYED[key] = rollout(model, processor, samples, **limits)
    return PLAYED[key]


@both_families
def test_trajectories_cover_what_they_should(trajectories):
    """The scripted trajectories hold every case the exactness tests are about."""
    assert {0, 1, 2, 3} <= {len(t.boxes) for t in trajectories}
    assert {"answer", "no_call", "turns"} <= {t.stop for t in trajectories}
    assert any(t.errors and t.boxes for t in trajectories)


@both_families
def test_cached_logprobs_equal_a_full_forward(model, processor, trajectories):
    for trajectory in trajectories:
        mask = torch.tensor(trajectory.sampled).bool()
        gap = full_logprobs(model, processor, trajectory)[mask] - torch.tensor(trajectory.logprobs)[mask]
        assert gap.abs().max() < 1e-4


@both_families
def test_free_sampling_logprobs_equal_a_full_forward(rollout, model, processor, samples):
    """No script: real sampling at a temperature, and a Hub-like generation config that must not leak in."""
    model.generation_config.repetition_penalty, model.generation_config.top_k = 1.5, 3
    try:
        trajectories = rollout(model, processor, samples, group=3, seed=1, force_call=True, **LIMITS)
    finally:
        model.generation_config.repetition_penalty, model.generation_config.top_k = 1.0, 50
    for trajectory in trajectories:
        mask = torch.tensor(trajectory.sampled).bool()
        gap = full_logprobs(model, processor, trajectory)[mask] - torch.tensor(trajectory.logprobs)[mask]
        assert gap.abs().max() < 1e-4
        ids = trajectory.completion_ids  # top_k 3 and the like would repeat itself
        assert len(set(ids)) > min(10, len(ids) // 2)


@both_families
def test_greedy_equals_an_uncached_loop(rollout, model, processor, samples):
    """Temperature 0, batched and cached, picks the tokens that a forward per token would pick."""
    for trajectory in rollout(model, processor, samples, temperature=0, force_call=True, **LIMITS):
        start, first = len(trajectory.prompt_ids), trajectory.sampled.index(1)
        banned = processor.tokenizer.convert_tokens_to_ids(list(tools.BANNED))
        ids = torch.tensor([trajectory.prompt_ids + trajectory.completion_ids])
        pixels = processor.image_processor(trajectory.images, return_tensors="pt")
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                mm_token_type_ids=(ids == processor.image_token_id).int(),
                **pixels,
            ).logits[0]
        logits[:, banned] = -torch.inf
        assert logits[start - 1 + first : -1].argmax(-1).tolist() == trajectory.completion_ids[first:]


@both_families
def test_masks_images_and_pads_agree(processor, trajectories):
    pad = processor.image_token_id
    for t in trajectories:
        assert len(t.sampled) == len(t.logprobs) == len(t.completion_ids)
        assert len(t.images) == 1 + len(t.boxes)
        runs, ids = [], t.prompt_ids + t.completion_ids
        for before, token in zip([None] + ids, ids):
            if token == pad:
                runs = runs[:-1] + [runs[-1] + 1] if before == pad else runs + [1]
        grids = processor.image_processor(t.images, return_tensors="pt")["image_grid_thw"]
        assert runs == [int(g.prod()) // 4 for g in grids]
        assert all(lp == 0.0 for lp, s in zip(t.logprobs, t.sampled) if not s)
        written = processor.tokenizer.decode(
            [i for i, s in zip(t.completion_ids, t.sampled) if s], skip_special_tokens=True
        )
        assert written == "".join(t.turns)  # the mask covers exactly what the model wrote


@both_families
def test_crops_come_from_ones_own_original(processor, trajectories):
    """Also after siblings have finished: each crop equals the one cut by hand from the sample's own
    image."""
    least = processor.image_processor.size["shortest_edge"]
    for t in trajectories:
        original = t.sample.open()
        for box, crop in zip(t.boxes, t.images[1:]):
            by_hand = original.crop(tuple(int(v) for v in box))
            size = tools.fit(by_hand.size, CROP, least, processor.family.token_side)
            by_hand = by_hand.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
            assert crop.size == by_hand.size and not ImageChops.difference(crop, by_hand).getbbox()


@both_families
def test_siblings_share_no_list(trajectories):
    lists = []
    for t in trajectories:
        lists += map(id, (t.images, t.calls, t.turns, t.completion_ids, t.prompt_ids))
    assert len(set(lists)) == len(lists)
    assert [t.sample.id for t in trajectories] == [f"s{i}" for i in range(3) for _ in range(8)]


@both_families
def test_batching_does_not_change_a_trajectory(rollout, model, processor, samples, script):
    script(lambda rng: call(10, 10, 60, 60))
    together = rollout(model, processor, samples, group=2, max_turns=3, **LIMITS)
    alone = rollout(model, processor, samples, group=2, max_turns=3, batch=2, **LIMITS)
    for a, b in zip(together, alone):
        assert a.completion_ids == b.completion_ids and a.boxes == b.boxes
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)


def test_an_answer_wins_over_a_call(rollout, model, processor, samples, script):
    script(lambda rng: "<answer>A</answer>" + call(10, 10, 60, 60))
    for t in rollout(model, processor, samples, **LIMITS):
        assert (t.stop, t.answer, t.boxes) == ("answer", "A", [])


def test_a_turn_ends_right_after_a_call(rollout, model, processor, samples, script):
    text = call(10, 10, 60, 60)
    script(lambda rng: [*processor.tokenizer(text + " and more", add_special_tokens=False)["input_ids"]])
    t = rollout(model, processor, samples[:1], max_turns=2, **LIMITS)[0]
    assert t.turns[0] == text and len(t.boxes) == 1


@both_families
@pytest.mark.parametrize("short", [1, 10, 25])
def test_an_observation_that_does_not_fit_is_dropped_whole(rollout, model, processor, samples, script, short):
    script(lambda rng: call(10, 10, 60, 60))
    whole = rollout(model, processor, samples[:1], max_turns=2, **LIMITS)[0]
    first_turn = whole.sampled.index(0)
    observation = whole.sampled[first_turn:].index(1)
    t = rollout(
        model,
        processor,
        samples[:1],
        max_turns=2,
        **LIMITS | {"max_tokens": first_turn + observation + 1 - short},
    )[0]
    assert (t.stop, t.boxes, len(t.images)) == ("budget", [], 1)
    assert processor.image_token_id not in t.completion_ids and len(t.completion_ids) == first_turn


def test_a_turn_that_runs_on_is_cut(rollout, model, processor, samples, script):
    script(lambda rng: [processor.tokenizer("A", add_special_tokens=False)["input_ids"][0]])
    t = rollout(model, processor, samples[:1], **LIMITS | {"max_turn_tokens": 7})[0]
    assert (t.stop, len(t.completion_ids), t.answer) == ("length", 7, None)


@both_families
def test_banned_ids_are_never_sampled(rollout, model, processor, samples):
    """Even from a model that would write nothing but vision tokens."""
    banned = processor.tokenizer.convert_tokens_to_ids(list(tools.BANNED))
    hook = model.lm_head.register_forward_hook(
        lambda m, a, out: out.index_fill(-1, torch.tensor(banned), 50.0)
    )
    try:
        trajectories = rollout(model, processor, samples, group=4, seed=0, **LIMITS)
    finally:
        hook.remove()
    assert not {i for t in trajectories for i, s in zip(t.completion_ids, t.sampled) if s} & set(banned)


def test_errors_keep_the_trajectory_going_and_show_no_image(rollout, model, processor, samples, script):
    turns = iter(
        [
            call(50, 50, 20, 20),
            "<tool_call>{'bbox_2d': [1,2,3,4]}</tool_call>",
            "<answer>B</answer>",
        ]
    )
    script(lambda rng: next(turns))
    t = rollout(model, processor, samples[:1], **LIMITS)[0]
    assert (t.stop, t.answer, len(t.errors), len(t.images)) == ("answer", "B", 2, 1)
    assert "swapped" in t.errors[0] and "112 x 112" in t.errors[0] and "JSON" in t.errors[1]
    assert t.errors[0] in processor.tokenizer.decode(t.completion_ids)


def test_a_hostile_call_leaves_no_image_token(rollout, model, processor, samples, script):
    """A call that spells special tokens out in letters: the error must not bring them back as tokens."""
    text = '<tool_call>{"name": "<|image_pad|>", "arguments": {"bbox_2d": "<|vision_start|>"}}</tool_call>'
    spelled = [i for c in text for i in processor.tokenizer(c, add_special_tokens=False)["input_ids"]]
    script(lambda rng: spelled + processor.tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"])
    for t in rollout(model, processor, samples, max_turns=2, **LIMITS | {"max_turn_tokens": 120}):
        assert t.stop == "turns" and "<|image_pad|>" in t.turns[0]
    t = rollout(model, processor, samples, max_turns=3, **LIMITS | {"max_turn_tokens": 120})[0]
    assert t.errors and processor.image_token_id not in t.completion_ids


def test_the_suffix_is_not_an_answer(rollout, model, processor, samples, script):
    """The observation repeats the format line with its literal <answer>...</answer>; a run that dies there
    has no answer."""
    turns = iter([call(10, 10, 60, 60), "<think> hm</think>"])
    script(lambda rng: next(turns))
    t = rollout(model, processor, samples[:1], **LIMITS)[0]
    assert "<answer>...</answer>" in processor.tokenizer.decode(t.completion_ids)
    assert (t.answer, t.stop) == (None, "no_call")


def test_arms(rollout, model, processor, samples, script, images):
    script(lambda rng: call(10, 10, 60, 60))
    arms = {
        arm: rollout(model, processor, samples[:1], tool=arm, max_turns=2, seed=0, **LIMITS)[0]
        for arm in ("on", "off", "blank", "random", "swap", "oracle")
    }
    assert arms["off"].boxes == [] and "image_zoom_in_tool" not in processor.tokenizer.decode(
        arms["off"].prompt_ids
    )
    assert arms["on"].boxes == arms["blank"].boxes == arms["random"].boxes == arms["oracle"].boxes
    assert arms["blank"].images[1].getcolors() == [(112 * 112, (128, 128, 128))]
    assert ImageChops.difference(arms["on"].images[1], arms["random"].images[1]).getbbox()
    target = (
        images[0]
        .crop((286, 286, 403, 403))
        .resize(arms["oracle"].images[1].size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    )
    assert not ImageChops.difference(arms["oracle"].images[1], target).getbbox()
    # Nothing to swap with in this sample: its own crop.
    assert not ImageChops.difference(arms["on"].images[1], arms["swap"].images[1]).getbbox()


def test_the_swap_arm_shows_another_tile(rollout, model, processor, script):
    """The tile is one of the image's others, whole, and the record says which letter was shown."""
    script(lambda rng: call(10, 10, 60, 60))
    for sample in [s for s in load("toy", limit=20) if s.meta["kind"] == "read"][:4]:
        t = rollout(model, processor, [sample], tool="swap", max_turns=2, seed=0, **LIMITS)[0]
        box, letter = controls.swapped(sample)
        assert box not in sample.boxes and (box, letter) in sample.meta["others"]
        region = controls.around(sample.open(), box)
        expected = tools.resize(sample.open().crop(region), t.images[1].size)
        assert not ImageChops.difference(t.images[1], expected).getbbox()
        for answer, shown in (
            (letter, True),
            (sample.answer, letter == sample.answer),
            (None, False),
        ):
            t.answer = answer
            record = scores.make_record(t, {"right": False, "said": None}, "swap")
            assert record["says_shown"] is shown
        assert scores.make_record(t, {"right": False, "said": None}, "on")["says_shown"] is None


def test_a_single_turn_sample_gets_no_tool(rollout, model, processor, images, script):
    script(lambda rng: r"<think> x</think>so \boxed{\frac{1}{2}}")
    sample = Sample("m", images[0], "How much?", "1/2", tool=False, source="thinklite")
    t = rollout(model, processor, [sample], **LIMITS)[0]
    assert (t.answer, t.stop) == (
        r"\frac{1}{2}",
        "answer",
    ) and "image_zoom" not in processor.tokenizer.decode(t.prompt_ids)


def test_the_model_is_left_as_it_was(rollout, model, processor, samples):
    model.train()
    state = torch.get_rng_state()
    rollout(model, processor, samples[:1], seed=5, **LIMITS)
    assert model.training and torch.equal(state, torch.get_rng_state())
    model.eval()


@pytest.mark.parametrize("flag", [{"tool": "onn"}, {"engine": "warp"}])
def test_unknown_arms_and_engines_are_refused(rollout, model, processor, samples, flag):
    with pytest.raises(ValueError, match="must be"):
        rollout(model, processor, samples, **flag)


def test_slots_draw_from_the_policy(model, processor):
    """Frequencies of 40,000 draws against the probabilities; what has none is never drawn."""
    env = ZoomEnv(processor, Limits(max_turns=1, max_turn_tokens=4, max_tokens=9), seed=0)
    engine = SlotEngine(model, env, 1.0, 1)
    wanted = torch.tensor([0.0, 0.5, 0.001, 0.0, 0.299, 0.2, 0.0])
    torch.manual_seed(0)
    drawn = engine.choose(wanted.log().expand(40_000, -1))
    shares = torch.bincount(drawn, minlength=7) / 40_000
    assert (shares[wanted == 0] == 0).all()
    spread = (wanted * (1 - wanted) / 40_000).sqrt()
    assert ((shares - wanted).abs() <= 4.5 * spread).all(), shares


@both_families
def test_features_are_what_the_tower_sees(rollout, model, processor, samples, script):
    script(random_turn)
    for t in rollout(model, processor, samples, group=3, seed=3, keep_features=True, **LIMITS):
        for image, features in zip(t.images, t.features, strict=True):
            assert (encode_images(model, processor, [image])[0] - features).abs().max() < 1e-5
            numbers = processor.family.count_levels(model.config) * model.lm_head.in_features
            assert features.shape == (processor.family.tokens(image), numbers)


@both_families
def test_workers_do_what_one_process_does(model, processor, samples):
    """The same greedy trajectories for any number of processes, in order, with the samples themselves."""
    threads = torch.get_num_threads()
    runs = [
        plain_rollout(
            model,
            processor,
            samples,
            group=2,
            temperature=0,
            engine="slots",
            threads=n,
            **LIMITS,
        )
        for n in (1, 2, 3, 50)
    ]
    for run in runs[1:]:
        assert [t.completion_ids for t in run] == [t.completion_ids for t in runs[0]]
        assert all(a.sample is b.sample for a, b in zip(run, runs[0]))
        assert [t.images for t in run] == [t.images for t in runs[0]]
    assert torch.get_num_threads() == threads


def test_chance_in_workers_is_repeatable_and_not_shared(model, processor, samples):
    same = [samples[0], samples[0]]
    one, again, other = (
        plain_rollout(model, processor, same, engine="slots", threads=2, seed=seed, **LIMITS)
        for seed in (3, 3, 4)
    )
    assert [t.completion_ids for t in one] == [t.completion_ids for t in again]
    assert one[0].completion_ids != one[1].completion_ids != other[1].completion_ids


def test_what_fails_in_a_worker_is_heard(model, processor, samples, monkeypatch):
    """An unreadable image, and a process that is killed, in the second worker."""
    broken = Sample("broken", "nowhere.png", "What?", "A")
    with pytest.raises(ValueError, match="nowhere.png"):
        plain_rollout(model, processor, [samples[0], broken], engine="slots", threads=2, **LIMITS)
    reset, parent = ZoomEnv.reset, os.getpid()
    monkeypatch.setattr(
        ZoomEnv,
        "reset",
        lambda *a: reset(*a) if os.getpid() == parent else os.kill(os.getpid(), 9),
    )
    with pytest.raises(MemoryError, match="killed"):
        plain_rollout(model, processor, samples[:2], engine="slots", threads=2, **LIMITS)


def test_a_worker_killed_while_it_sends_is_heard(model, processor, samples, monkeypatch):
    def half(engine, samples, openings, seed, pipe):
        os.write(pipe.fileno(), (4096).to_bytes(4, "big") + b"half")
        os.kill(os.getpid(), 9)

    monkeypatch.setattr(workers_module, "worker", half)
    with pytest.raises(MemoryError, match="killed"):
        plain_rollout(model, processor, samples[:2], engine="slots", threads=2, **LIMITS)


ORPHAN = """
import os, sys, time; sys.path.insert(0, {root!r})
from data import load
from model import load_model
from rollout import ZoomEnv, rollout

parent = os.getpid()
def reset(*_):
    if os.getpid() != parent:
        print(os.getpid(), flush=True)
    time.sleep(100)
ZoomEnv.reset = reset
rollout(*load_model("tiny"), load("toy", limit=2), engine="slots", threads=2)
"""


def test_no_worker_outlives_its_parent():
    run = subprocess.Popen(
        [sys.executable, "-c", ORPHAN.format(root=str(ROOT))], stdout=subprocess.PIPE, text=True
    )
    child = int(run.stdout.readline())
    run.kill()
    run.wait()
    for _ in range(50):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the worker goes on")


def recorded(step, given):
    """Stands in for a CUDA graph: fixed shapes, inputs copied to fixed places, one place for the output."""
    places, out = [each.clone() for each in given], step(*given).clone()
    recorded.count += 1

    def replay(*given):
        for place, value in zip(places, given, strict=True):
            assert place.shape == value.shape
            place.copy_(value)
        return out.copy_(step(*places))

    return replay


@both_families
def test_recorded_steps_change_nothing(model, processor, samples, script, monkeypatch):
    """The decode step over all slots and all their room, as a GPU replays it: the same trajectories, though
    slots are free, filled again, and grow."""
    runs, plain = [], SlotEngine.__init__
    for capture in (None, recorded):
        recorded.count = 0
        script(random_turn)
        if capture:
            monkeypatch.setattr(slots_module, "capture_graph", capture)
            monkeypatch.setattr(slots_module, "GROWTH", 32)
            monkeypatch.setattr(
                SlotEngine,
                "__init__",
                lambda self, *a: plain(self, *a) or vars(self).update(use_graphs=True),
            )
        limits = {"group": 2, "max_turns": 4, "batch": 4, "seed": 3} | LIMITS
        runs.append(plain_rollout(model, processor, samples, engine="slots", **limits))
    assert recorded.count > 1
    for a, b in zip(*runs, strict=True):
        assert a.completion_ids == b.completion_ids
        assert torch.tensor(a.logprobs).sub(torch.tensor(b.logprobs)).abs().max() < 1e-5


class IdleGraph:
    """Stands in for a CUDA graph that computes nothing."""

    def replay(self):
        pass


@pytest.mark.parametrize("breaks", [False, True])
def test_a_graph_that_can_not_be_trusted_is_not_used(breaks, monkeypatch):
    """Neither one that can't be recorded, nor one whose replay gives another result."""

    @contextmanager
    def graph(_, stream):
        yield
        if breaks:
            raise RuntimeError("operation not permitted when stream is capturing")

    stream, streams = SimpleNamespace(wait_stream=lambda other: None, device="cuda"), []
    graph_module.side_stream.cache_clear()
    names = dict(CUDAGraph=IdleGraph, Stream=lambda device: stream, current_stream=lambda: stream)
    names |= dict(stream=nullcontext, graph=graph, set_stream=streams.append)
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**names))
    with pytest.warns(UserWarning, match="capturing" if breaks else "something else"):
        assert graph_module.capture_graph(lambda x: x + 1, (torch.zeros(2),)) is None
    assert streams == [stream]


def test_graphs_share_one_stream(monkeypatch):
    """Each of torch's streams keeps a workspace of cuBLAS for good."""
    graph_module.side_stream.cache_clear()
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    assert graph_module.side_stream("cuda:0") is graph_module.side_stream("cuda:0")
    assert made == ["cuda:0"]
    graph_module.side_stream.cache_clear()


def test_a_failed_graph_is_tried_again_in_the_next_rollout(model, processor, samples, script, monkeypatch):
    plain = SlotEngine.__init__
    tried = []
    monkeypatch.setattr(slots_module, "capture_graph", lambda *given: tried.append(1))
    monkeypatch.setattr(
        SlotEngine,
        "__init__",
        lambda self, *a: plain(self, *a) or vars(self).update(use_graphs=True),
    )
    for _ in range(2):
        script(random_turn)
        plain_rollout(model, processor, samples, engine="slots", max_turns=2, **LIMITS)
    assert len(tried) == 2 and SlotEngine.use_graphs


def seen_masks(model, monkeypatch) -> list:
    """The masks that the language model is given, None where it is given none."""
    masks = []
    language = model.model.language_model
    plain = language.forward

    def forward(*args, attention_mask, **kwargs):
        masks.append(attention_mask)
        return plain(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(language, "forward", forward)
    return masks


@both_families
def test_no_mask_is_larger_than_asked(model, processor, samples, script, monkeypatch):
    """The first look needs none at all (it can have 16,384 tokens); others are cut, to the same answers."""
    script(lambda rng: call(5, 5, 100, 100))
    limits = {"group": 2, "max_turns": 3, "engine": "slots", "seed": 0} | LIMITS
    plain = plain_rollout(model, processor, samples, **limits)
    masks = seen_masks(model, monkeypatch)
    monkeypatch.setattr(slots_module, "MASK", 3000)
    script(lambda rng: call(5, 5, 100, 100))
    cut = plain_rollout(model, processor, samples, **limits)
    assert masks[0] is None and masks[-1] is not None
    shapes = [tuple(mask.shape) for mask in masks if mask is not None]
    for rows, _, length, end in shapes:  # end is rounded up by 7 at most
        assert length == 1 or rows == 1 or rows * length * (end - 7) <= 3000
    assert all(shape[3] % 8 == 0 for shape in shapes)
    for one, other in zip(plain, cut, strict=True):
        assert one.completion_ids == other.completion_ids
        assert torch.tensor(one.logprobs).sub(torch.tensor(other.logprobs)).abs().max() < 1e-5


def test_records_made_by_hand_read_like_played_ones(samples):
    """`boxes`, `errors`, `used` and `delivered` read the calls."""
    box = (0.0, 0.0, 50.0, 50.0)
    calls = made_calls([box, box], ["no"]) + [tools.Call("image_rotate_tool")]
    t = Trajectory(samples[0], [1], [], [], [], [], ["x"], calls, "A", "answer")
    assert (t.boxes, t.errors, t.answer, t.stop) == ([box, box], ["no"], "A", "answer")
    assert [call.error for call in t.calls] == [None, None, "no", None]
    assert t.used == [tools.TOOL, tools.TOOL, "image_rotate_tool"] and t.delivered == 3
    bare = Trajectory(samples[0], [1])
    assert bare.boxes == bare.errors == bare.used == [] and bare.delivered == 0


@both_families
def test_merged_lora_leaves_no_trace(model, processor, samples):
    """While sampling, the layers of LoRA are gone; afterwards all weights and modules are as they were."""
    lora = add_lora(copy.deepcopy(model), 4)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = {name: value.clone() for name, value in lora.state_dict().items()}
    names = [name for name, _ in lora.named_modules()]
    with merged_lora(lora):
        assert not any("lora" in name for name, _ in lora.named_modules())
        merged = lora.state_dict()["base_model.model.model.language_model.layers.0.self_attn.q_proj.weight"]
        assert not any(torch.equal(merged, other) for other in before.values())
    assert [name for name, _ in lora.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in lora.state_dict().items())


def test_the_command_prints_a_trajectory():
    """Turns with logprobs, the crop, the reward's terms, and the advantages, which are those of the group."""
    done = run_script("rollout.py")
    assert done.returncode == 0, done.stderr
    assert "trained on" in done.stdout and "not trained on" in done.stdout and "[the crop:" in done.stdout
    assert "accuracy 1" in done.stdout and "tool 1 = 2.00" in done.stdout
    advantages = [float(v) for v in re.findall(r"advantage ([+-][\d.]+)", done.stdout)]
    assert len(advantages) == 8 and abs(sum(advantages)) < 0.05 and "<- this one" in done.stdout
    # What the README's third try asks for: some zoom and are correct, some are not, one guesses correctly.
    rewards = re.findall(r"reward +(-?[\d.]+), advantage", done.stdout)
    assert len(rewards) == 8 and set(rewards) == {"0.00", "0.80", "2.00"} and rewards.count("0.80") == 1


@both_families
def test_a_bfloat16_model_samples_with_what_autocast_trains(model, processor):
    """The LoRA of the sampler is the trainer's, rounded as autocast rounds it; afterwards it is as it was."""
    lora = add_lora(copy.deepcopy(model).bfloat16(), 4)
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    master_lora(lora)
    before = {name: value.clone() for name, value in lora.state_dict().items()}
    layer = lora.base_model.model.model.language_model.layers[0].mlp.up_proj
    x = torch.randn(5, layer.in_features, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        trained = layer(x)
    with torch.no_grad(), cast_lora(lora):
        sampled = layer(x)
    assert sampled.dtype == torch.bfloat16 and torch.equal(sampled, trained)
    assert all(torch.equal(value, before[name]) for name, value in lora.state_dict().items())
    assert layer.lora_A["default"].weight.dtype == torch.float32
