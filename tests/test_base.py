"""The tiny base in toy/base: small, made by the script, and with the skills it is said to have."""

import json
import random

import pytest
import torch
from conftest import ROOT

import tools
from data import load
from evaluation.scores import answer_records, summarise_by_kind
from model import load_model
from toy import make_base
from toy.lessons import lesson_call, shown_box
from toy.make_base import STEPS, Lessons, lessons, measure_skills
from toy.tiny import BLOCKS, make_processor, make_tokenizer
from toy.world import draw_question, random_scene

BASE = ROOT / "toy" / "base"


@pytest.fixture(scope="module")
def base():
    return load_model("tiny", device="cpu")


def test_it_is_small_and_laid_out_like_a_hub_repository(base):
    assert sum(p.numel() for p in base[0].parameters()) <= 3_000_000
    assert sum(f.stat().st_size for f in BASE.iterdir()) <= 8 * 2**20
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= {
        f.name for f in BASE.iterdir()
    }
    assert type(base[0]).__name__ == "Qwen2_5_VLForConditionalGeneration"


def test_its_tokenizer_is_the_scripts(base):
    """The real prompts at the price of single tokens, one token a digit, and any text round and round."""
    tokenizer = base[1].tokenizer
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    for block in BLOCKS:
        assert len(tokenizer(block, add_special_tokens=False)["input_ids"]) == 1, block
    assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4
    text = tools.prompt("Où est-ce? 日本\n") + tools.observation("bad")
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_its_skills(base):
    """Measured afresh: it reads and points well, and can't tell a letter at first sight."""
    stored = json.loads((BASE / "skills.json").read_text())
    torch.set_num_threads(1)
    skills = measure_skills(*base, n=80, seed=99)
    assert skills["read"] >= 0.8 and skills["pair"] >= 0.75
    assert skills["ground_iou"] >= 0.36 and stored["ground_iou"] >= 0.4
    assert skills["first_look_read"] <= 0.3 and stored["first_look_read"] <= 0.25  # chance is 0.125
    assert all(abs(skills[name] - stored[name]) < 0.2 for name in stored if name in skills)


def test_its_tool_habit_is_weak_and_its_boxes_are_poor(base):
    samples = load("toy", split="test", limit=80, seed=7)
    limits = {"look_pixels": 112 * 112, "crop_pixels": 134 * 134, "max_turn_tokens": 48}
    scores = {}
    for arm in ("on", "forced"):
        scores[arm] = summarise_by_kind(answer_records(*base, samples, arm, **limits))
    assert scores["on"]["all"]["tool_rate"] < 0.5 and scores["on"]["read"]["accuracy"] <= 0.35
    assert scores["forced"]["read"]["iou"] < 0.2  # 0.7 after training


def test_no_lesson_shows_its_own_crop():
    """After a call the image shown is a close-up of another scene than the one the box was drawn in."""
    batch = [lesson for step in range(STEPS - 4, STEPS) for lesson in lessons(step, STEPS, 0)]
    calls = [lesson for lesson in batch if lesson.skill.startswith("call")]
    assert len(calls) > 40 and {"pair", "ground", "reason"} < {lesson.skill for lesson in batch}
    for lesson in batch:
        scenes = {shown.scene for shown in lesson.shown}
        images = sum(text.count(tools.IMAGE) for text, _ in lesson.parts)
        assert len(scenes) == len(lesson.shown) == images, lesson.skill


def test_two_tiles_are_never_called_for_without_naming_one():
    """RL keeps a call that names no tile, and then looks at any: `compare` stays at a guess."""
    rng = random.Random(3)
    before = {"read": [], "compare": []}
    for kind, seen in before.items():
        for _ in range(40):
            parts = lesson_call(rng, kind, draw_question(rng, kind)).parts
            texts = [text for text, _ in parts]
            seen += [one for one, other in zip(texts, texts[1:]) if other == "<tool_call>"]
    first_tries = [text for text in before["compare"] if "Error" not in text]
    assert len(first_tries) > 60 and all(text.endswith("</think>") for text in first_tries)
    assert not all(text.endswith("</think>") for text in before["read"])


def test_stages_follow_one_another():
    """Letters first and alone, one tile, and huge; then tiles; then the toy's questions."""
    ends = [stage.steps for stage in make_base.STAGES]
    skills = [{lesson.skill for lesson in lessons(step, STEPS, 0)} for step in (0, ends[0], STEPS - 1)]
    assert skills[0] == {"read", "ground", "name"} and skills[1] == skills[0] | {"pair"}
    assert {"direct_large", "call_compare"} < skills[2]
    waiting = lessons(ends[0] + ends[1] + 99, STEPS, 0, waited=100)  # its last step, and new lessons
    assert {lesson.skill for lesson in waiting} == skills[1]
    scaled = [[lesson.skill for lesson in lessons(step, STEPS // 500, 0)] for step in range(STEPS // 500)]
    assert scaled[0].count("read") == 56 and scaled[-1].count("direct_large") == 18


def test_lessons_are_the_same_for_the_same_step():
    """So that a resumed run learns what an undisturbed one would."""
    processor = make_processor()
    step = STEPS - 100
    first = Lessons(processor, STEPS, 0)[step]
    resumed = Lessons(processor, STEPS, 0)
    resumed[step - 1]
    again = resumed[step]
    assert len(first) == len(again) == make_base.PARTS
    for one, other in zip(first, again):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if name != "skills")
        assert one["weights"].dtype == torch.float32  # also where a row has none but whole ones
        heavy = one["weights"] > 0
        assert not (heavy & (one["input_ids"] == processor.image_token_id)).any() and heavy.any()


@pytest.mark.parametrize("measure, opening", [("ground_iou", '{"bbox_2d": ['), ("call_iou", "")])
def test_pointing_is_measured_by_the_numbers_of_the_box(measure, opening, monkeypatch):
    """There is a digit in "bbox_2d", too; a call's opening is written for the model."""
    rng = random.Random(5)
    scenes = [random_scene(rng) for _ in range(4)]
    boxes = [shown_box(rng.choice(scene.tiles)) for scene in scenes]
    texts = [opening + ",".join(str(round(value)) for value in box) + "]} 77 [1,2" for box in boxes]
    monkeypatch.setattr(make_base, "write", lambda model, processor, asked: texts)
    assert make_base.SKILLS[measure](None, None, 4, random.Random(5)) > 0.85
    monkeypatch.setattr(make_base, "write", lambda model, processor, asked: ["no box"] * 4)
    assert make_base.SKILLS[measure](None, None, 4, random.Random(5)) == 0


def test_muon_makes_steps_orthogonal():
    """All singular values near 1, and the steps are those of torch's own."""
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(make_base.orthogonal(matrices))
    assert singular.min() > 0.6 and singular.max() < 1.3
    tall = make_base.orthogonal(matrices.mT)
    torch.testing.assert_close(tall, make_base.orthogonal(matrices).mT)
    weight = torch.nn.Parameter(matrices[0].clone())
    twin = torch.nn.Parameter(matrices[0].clone())
    ours = make_base.Muon([weight], lr=0.01)
    theirs = torch.optim.Muon([twin], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        grad = torch.randn(24, 40, generator=torch.Generator().manual_seed(seed))
        weight.grad = grad.clone()
        twin.grad = grad.clone()
        ours.step()
        theirs.step()
    assert (weight - twin).abs().max() < 1e-3  # theirs counts in bfloat16
    assert (weight - matrices[0]).abs().mean() > 2e-3


def test_the_script_resumes_to_the_same_base(tmp_path, monkeypatch):
    """Stopped in the middle and called again, it ends with the weights of an undisturbed run."""
    monkeypatch.setattr(make_base, "ASKED", 4)
    settings = {"steps": 4, "seed": 0, "threads": 1, "lr": 1e-3}
    learn, calls = make_base.learn, []

    def stopped(*given):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return learn(*given)

    monkeypatch.setattr(make_base, "learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_base.train(tmp_path / "stopped", **settings)
    monkeypatch.setattr(make_base, "learn", learn)
    for name in ("stopped", "whole"):
        skills = make_base.train(tmp_path / name, **settings)
        assert set(skills) == {*make_base.SKILLS, "own_crops"} and skills["own_crops"] == 0
    rows = [json.loads(line) for line in (tmp_path / "stopped/base/training_log.jsonl").open()]
    # The ends of the stages: skills in the lessons, and what is asked at the bar. "places" waits for its bar
    # until its patience ends; stopped was the run in the stage after it.
    assert [row["step"] for row in rows[::2]] == [1, 2, 3, 5, 6] == [row["step"] for row in rows[1::2]]
    _, places, answers, sizes = (set(stage.bar) for stage in make_base.STAGES)
    asked = [set(row) & set(make_base.SKILLS) for row in rows[1::2]]
    assert asked == [places, places, places, answers, sizes] and "read" in rows[0]
    model, processor = load_model(str(tmp_path / "stopped" / "base"), device="cpu")
    whole, _ = load_model(str(tmp_path / "whole" / "base"), device="cpu")
    assert all(map(torch.equal, model.parameters(), whole.parameters()))
    assert model.dtype == torch.float32 and processor.tokenizer.padding_side == "left"
