"""The tiny base in toy/base: small, made by the script, and with the skills it is said to have."""

import json

import pytest
import torch
from conftest import ROOT

import tools
from data import load
from evaluation.scores import answer_records, summarise_by_kind
from model import load_model
from toy.make_base import BLOCKS, Lessons, make_processor, make_tokenizer, measure_skills

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
    assert all(abs(skills[name] - stored[name]) < 0.2 for name in stored)


def test_its_tool_habit_is_weak_and_its_boxes_are_poor(base):
    samples = load("toy", split="test", limit=80, seed=7)
    limits = {"look_pixels": 112 * 112, "crop_pixels": 134 * 134, "max_turn_tokens": 48}
    scores = {}
    for arm in ("on", "forced"):
        scores[arm] = summarise_by_kind(answer_records(*base, samples, arm, **limits))
    assert scores["on"]["all"]["tool_rate"] < 0.5 and scores["on"]["read"]["accuracy"] <= 0.35
    assert scores["forced"]["read"]["iou"] < 0.2  # 0.7 after training


def test_no_lesson_rewards_a_good_box():
    """After a call the image shown is a close-up of another scene than the one the box was drawn in."""
    from toy import make_base

    shown, plain = [], make_base.close_up
    make_base.close_up = lambda rng, scene, *rest: shown.append(scene.seed) or plain(rng, scene, *rest)
    drawn, draw = [], make_base.draw_question
    make_base.draw_question = lambda rng, kind: drawn.append(draw(rng, kind)) or drawn[-1]
    try:
        batch = [lesson for step in (2500, 3000) for lesson in make_base.lessons(step, 3400, 0)]
    finally:
        make_base.close_up, make_base.draw_question = plain, draw
    assert sum(name.startswith("call") for name, _, _ in batch) > 20
    assert {scene.seed for scene, *_ in drawn}.isdisjoint(shown)


def test_lessons_are_the_same_for_the_same_step():
    """So that a resumed run learns what an undisturbed one would."""
    processor = make_processor()
    first, again = Lessons(processor, 0, 3400, 0)[2900], Lessons(processor, 2000, 3400, 0)[900]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again))
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, again))
    for part in first:
        heavy = part["weights"] > 0
        assert not (heavy & (part["input_ids"] == processor.image_token_id)).any() and heavy.any()


def test_the_script_resumes_and_writes_a_model_that_loads(tmp_path):
    from toy.make_base import train

    for steps in (1, 2):  # the second call goes on where the first one stopped
        train(tmp_path, steps=steps, seed=0, threads=1, peak_lr=1e-3)
    rows = [json.loads(line) for line in (tmp_path / "base" / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and "ground" in rows[0]
    model, processor = load_model(str(tmp_path / "base"), device="cpu")
    assert model.dtype == torch.float32 and processor.tokenizer.padding_side == "left"
