"""What a run keeps of its held-out questions, and the statistics of before and after."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import call

from data import load
from engine.slots import SlotEngine
from evaluation import scores as scores_module
from evaluation import validation
from evaluation.stats import two_way_interval
from evaluation.validation import Validation, aim_of, comparison_text
from safe.files import read_rows

LIMITS = {
    "max_turns": 3,
    "max_turn_tokens": 60,
    "max_tokens": 300,
    "batch": 256,
    "look_pixels": 112 * 112,
    "crop_pixels": 112 * 112,
    "engine": "slots",
}


@pytest.fixture
def held_out(tmp_path):
    samples = [s for s in load("toy", split="test", limit=30) if s.meta["kind"] == "read"][:6]
    return Validation(samples, tmp_path / "eval.json", LIMITS, None)


@pytest.fixture
def policy(monkeypatch, processor):
    """policy(box, answer): zoom on `box(sample)`, if there is one, then say `answer(sample)`."""

    def install(box, answer):
        def choose(engine, scores):
            tokens = []
            for slot in engine.live:
                t = engine.env.trajectories[slot.trajectory]
                zooms = box(t.sample) is not None and not t.turns
                text = f"<answer>{answer(t.sample)}</answer><|im_end|>"
                if zooms:
                    text = call(*[round(v / 9, 1) for v in box(t.sample)])
                ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
                tokens.append(ids[min(slot.written, len(ids) - 1)])
            return torch.tensor(tokens)

        monkeypatch.setattr(SlotEngine, "choose", choose)

    return install


def test_before_and_after_are_paired_question_by_question(held_out, policy, model, processor, capsys):
    """Three of six right before, all after: no question was lost, and the test is the exact one."""
    right = {s.id for s in held_out.samples[:3]}
    policy(lambda s: None, lambda s: s.answer if s.id in right else "nothing")
    held_out.score(model, processor, "before", ("on", "off", "oracle"))
    policy(lambda s: s.boxes[0], lambda s: s.answer)
    held_out.score(model, processor, "after", ("on",), 5)
    found = held_out.compare()["paired"]
    assert set(found) == {"on"}
    assert found["on"] == {"n": 6, "gain": 0.5, "harm": 0.0, "difference": 0.5, "p": 0.25}
    assert "on after against on before: +0.500" in comparison_text(held_out.stored())
    rows = read_rows(held_out.answers)
    assert len(rows) == 6 * 4  # three arms before, one after
    after = [row for row in rows if row["when"] == "after"]
    assert all(row["iou"] > 0.9 and row["right"] for row in after)
    stored = held_out.stored()["after"]["on"]["all"]
    assert stored["accuracy"] == sum(row["right"] for row in after) / 6
    assert stored["tool_rate"] == 1.0


def test_what_is_scored_already_is_not_scored_again(held_out, policy, model, processor):
    policy(lambda s: None, lambda s: s.answer)
    first = held_out.score(model, processor, "before", ("on",))
    policy(lambda s: None, lambda s: "nothing")
    assert held_out.score(model, processor, "before", ("on",)) == json.loads(json.dumps(first))
    held_out.score(model, processor, "after", ("on",), 5)
    held_out.score(model, processor, "after", ("on",), 9)  # the run was prolonged
    rows = read_rows(held_out.answers)
    assert [row["when"] for row in rows] == ["before"] * 6 + ["after"] * 6


def forced(when: str, boxes, kind="read") -> list[dict]:
    target = [100, 100, 200, 200]
    return [
        {"when": when, "arm": "forced", "kind": kind, "boxes": [box], "targets": [target]} for box in boxes
    ]


def test_rows_of_one_group_are_one_question():
    """Eight variants of a question, all wrong before and right after, are no eight pieces of evidence."""
    rows = []
    for when in ("before", "after"):
        for i in range(8):
            row = {"when": when, "arm": "on", "id": str(i), "group": "one", "right": when == "after"}
            rows.append(row)
    found = validation.compare_times(rows)["on"]
    assert (found["difference"], found["p"]) == (1.0, 1.0)
    apart = [row | {"group": row["id"]} for row in rows]
    assert validation.compare_times(apart)["on"]["p"] == pytest.approx(2 / 2**8)


def test_boxes_that_only_shrink_are_told_from_boxes_that_aim():
    """Wide boxes around the target are as good when shrunk; shrinking those beside it helps nothing."""
    after = forced("after", [[100, 100, 200, 200]] * 3)
    around = aim_of(forced("before", [[0, 0, 300, 300]] * 3) + after)
    assert around["before, at the size of after"] == around["after"] == 1.0
    assert around["before"] == pytest.approx(1 / 9)
    beside = aim_of(forced("before", [[150, 150, 450, 450]] * 3) + after)
    assert beside["before, at the size of after"] == 0.0 < beside["before"] < beside["after"]
    other = forced("before", [[0, 0, 9, 9]], kind="glance")  # not asked to aim
    assert aim_of(other + forced("before", [[0, 0, 300, 300]]) + after) == around
    assert aim_of(after) == {} == aim_of([])


def test_an_interval_over_seeds_is_wider_where_seeds_differ():
    """Three runs of 0.5, 0.7, 0.9 on 500 questions: the questions alone would say +- 0.03."""
    rng = np.random.default_rng(0)
    apart = [(rng.random(500) < fraction).tolist() for fraction in (0.5, 0.7, 0.9)]
    alike = [(rng.random(500) < 0.7).tolist() for _ in range(3)]
    wide = np.subtract(*reversed(two_way_interval(apart)))
    narrow = np.subtract(*reversed(two_way_interval(alike)))
    assert wide > 0.2 > 0.1 > narrow
    one = two_way_interval(alike[:1])  # a single run: its questions are all there is to draw
    assert one[0] < np.mean(alike[0]) < one[1]
    assert two_way_interval(apart) == two_way_interval(apart)  # the same each time


def test_scoring_that_runs_out_of_memory_is_done_with_half_the_batch(
    held_out, policy, model, processor, capsys, monkeypatch
):
    policy(lambda s: None, lambda s: s.answer)
    plain = scores_module.rollout
    asked = []

    def capped(*arguments, batch, **settings):
        asked.append(batch)
        if batch > 128:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(*arguments, batch=batch, **settings)

    monkeypatch.setattr(scores_module, "rollout", capped)
    held_out.settings["batch"] = 256
    scores = held_out.score(model, processor, "before", ("off",))
    assert asked == [256, 128] and scores["off"]["all"]["accuracy"] == 1.0
    assert "out of memory: once more with --batch 128" in capsys.readouterr().out


def test_a_swap_is_summed_up():
    assert validation.comparison_text(
        {"paired": {}, "after": {"swap": {"read": {"says_shown": 0.95}, "all": {"says_shown": 0.5}}}}
    ) == ("swap: shown another tile's crop, it says that one's letter: 0.95 (says_shown of read)")


def test_what_a_judge_that_was_away_should_have_graded_is_asked_again(
    held_out, policy, model, processor, capsys
):
    held_out.judge = Away()
    held_out.samples = [replace(s, answer="It stands on the table.") for s in held_out.samples]
    policy(lambda s: None, lambda s: "on a desk")
    scores = held_out.score(model, processor, "before", ("off",))
    assert scores["off"]["all"]["accuracy"] == 0.0
    assert held_out.stored()["unjudged"] == {"before: off": 6}
    held_out.judge.is_away = False
    scores = held_out.score(model, processor, "before", ("off",))
    assert scores["off"]["all"]["accuracy"] == 1.0 and held_out.stored()["unjudged"] == {}
    capsys.readouterr()
    held_out.score(model, processor, "before", ("off",))  # all is known
    assert capsys.readouterr().out == ""
    assert len(read_rows(held_out.answers)) == 6


class Away:
    """A judge that says yes, when it is there."""

    is_away = True
    missed = 0

    def say_missed(self):
        return f"{self.missed} answers were graded by the rules alone"

    def __call__(self, question, gold, answer):
        self.missed += self.is_away
        return not self.is_away
