"""The reward reads records: hand-made trajectories of every kind that the code of the paper can meet."""

import time

import pytest
from conftest import made_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Sample
from grading.correct import MAX_ANSWER_CHARS, is_correct
from reward import score
from rollout import Trajectory

GOLD = Sample("1", b"", "What letter is on the red tile?", "A")
BOX = (0.0, 0.0, 50.0, 50.0)


def trajectory(answer, boxes=0, errors=0, turns=None, sample=GOLD):
    turns = turns or ["<think>x</think><answer>y</answer>"]
    return Trajectory(
        sample,
        [1],
        turns=turns,
        calls=made_calls([BOX] * boxes, ["bad box"] * errors),
        answer=answer,
        stop="answer",
    )


@pytest.mark.parametrize(
    ("answer", "boxes", "bonus", "total"),
    [
        ("A", 1, "conditional", 2.0),
        ("A", 3, "conditional", 2.0),  # paid once, however many calls
        ("A", 0, "conditional", 0.8),
        ("B", 1, "conditional", 0.0),
        ("B", 0, "conditional", 0.0),
        (None, 1, "conditional", -0.2),
        ("A", 1, "unconditional", 2.0),
        ("B", 1, "unconditional", 1.2),
        (None, 1, "unconditional", 1.0),
        ("B", 0, "unconditional", 0.0),
        ("A", 1, "none", 0.8),
        ("B", 1, "none", 0.0),
    ],
)
def test_the_papers_formula(answer, boxes, bonus, total):
    reward = score(trajectory(answer, boxes), bonus=bonus)
    assert reward.total == pytest.approx(total) and reward.price == 0.0


@pytest.mark.parametrize(
    ("answer", "boxes", "bonus", "crop_price_on", "total"),
    [
        ("A", 0, "none", "right", 0.8),
        ("A", 2, "none", "right", 0.7),
        ("B", 2, "none", "right", 0.0),  # what is wrong costs nothing more: looking stays free to explore
        ("A", 2, "none", "all", 0.7),
        ("B", 2, "none", "all", -0.1),
        (None, 2, "none", "all", -0.3),
        (None, 2, "none", "right", -0.2),
        ("A", 2, "conditional", "right", 1.9),
        ("A", 0, "conditional", "all", 0.8),
        ("B", 2, "unconditional", "right", 1.2),
        ("B", 2, "unconditional", "all", 1.1),
    ],
)
def test_the_price_of_crops_beside_any_bonus(answer, boxes, bonus, crop_price_on, total):
    made = trajectory(answer, boxes)
    reward = score(made, bonus=bonus, crop_price=0.05, crop_price_on=crop_price_on)
    assert reward.total == pytest.approx(total)
    free = score(made, bonus=bonus)
    assert free.price == 0.0 and free.total - reward.price == pytest.approx(reward.total)


def test_refused_calls_are_not_paid_for():
    """Only crops that came back cost."""
    reward = score(trajectory("A", boxes=1, errors=3), bonus="none", crop_price=0.05)
    assert reward.price == 0.05 and reward.total == pytest.approx(0.75)


@pytest.mark.parametrize("setting", [{"bonus": "priced"}, {"crop_price_on": "wrong"}, {"bonus": None}])
def test_unknown_settings_are_errors(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be one of"):
        score(trajectory("A"), **setting)


def test_a_failed_call_earns_nothing():
    """The verl port greps for <tool_call>: here a call counts when its crop came back."""
    turns = ['<tool_call>{"name": "image_zoom_in_tool"}</tool_call>', "<answer>A</answer>"]
    for bonus in ("conditional", "unconditional"):
        reward = score(trajectory("A", boxes=0, errors=2, turns=turns), bonus=bonus)
        assert (reward.tool, reward.total) == (0.0, 0.8)


@pytest.mark.parametrize(
    "turns",
    [
        ["<think>x<answer>A</answer>"],
        ["<think>x</think></think><answer>A</answer>"],
        ["<answer>A</answer></answer>"],
        ["<tool_call>{}", "<answer>A</answer>"],
    ],
)
def test_open_tags_are_format_errors(turns):
    reward = score(trajectory("A", turns=turns))
    assert (reward.accuracy, reward.format) == (1.0, -1.0)


def test_a_very_long_answer_is_wrong_and_malformed():
    for length, right in ((MAX_ANSWER_CHARS, False), (MAX_ANSWER_CHARS - 1, True)):
        text = "A" + "!" * (length - 1)
        reward = score(trajectory(text))
        assert (reward.accuracy == 1.0) is right and (reward.format == 0.0) is right


def test_rows_without_the_tool():
    sample = Sample("m", b"", "How much?", "12", tool=False)
    turns = [r"<think>\boxed{7}? No.</think> It is \boxed{12}."]
    assert score(trajectory("12", sample=sample, turns=turns)).total == pytest.approx(1.2)
    assert score(trajectory("13", sample=sample, turns=turns)).total == 0.0
    assert score(trajectory(None, sample=sample)).total == pytest.approx(-0.4)
    for wrong in (r"<think>\boxed{12}</think> 12", r"\boxed{12} or \boxed{12}", "<answer>12</answer>"):
        assert score(trajectory("12", sample=sample, turns=[wrong])).format == -1.0  # once, after the thought
    assert score(trajectory("12", boxes=1, sample=sample), bonus="unconditional").tool == 0.0


OPTIONS = ("the blue car", "the red car", "a dog", "12")
MATCHES = [
    # gold, options, prediction, right?
    ("the red car", OPTIONS, "B", True),
    ("the red car", OPTIONS, "b", True),
    ("the red car", OPTIONS, "(B)", True),
    ("the red car", OPTIONS, "(b).", True),
    ("the red car", OPTIONS, "B. the red car", True),
    ("the red car", OPTIONS, "The answer is B", True),
    ("the red car", OPTIONS, "The answer is (B).", True),
    ("the red car", OPTIONS, "red car", True),
    ("the red car", OPTIONS, "It is the red car.", True),
    ("the red car", OPTIONS, "A", False),
    ("the red car", OPTIONS, "A dog", False),  # an article is no letter
    ("the red car", OPTIONS, "the red car or the blue car", False),
    ("a dog", OPTIONS, "A dog", True),
    ("12", OPTIONS, "D", True),
    ("yes", (), "Yes.", True),
    ("no", (), "No, there is not.", True),
    ("yes", (), "yes or no", False),
    ("yes", (), "maybe", False),
    ("1200", (), "1,200", True),
    ("0.5", (), "1/2", True),
    ("45", (), "45%", True),
    ("12", (), "12 cm", True),
    ("12", (), "12.5", False),
    ("12", (), "2", False),
    (r"\frac{1}{2}", (), "0.5", True),
    (r"x^2+1", (), r"1+x^{2}", True),
    (r"\frac{1}{2}", (), r"\frac{1}{3}", False),
    ("red", (), "The Red!", True),
    ("A", (), "a", True),
    ("A", (), "AA", False),
    ("A", (), "", False),
    ("A", (), None, False),
    ("A", (), "...", False),
    ("!", (), "...", False),
    ("the red car", OPTIONS, "(A) or (B)", False),
    ("the blue car", OPTIONS, "A. or B.", False),
    ("the blue car", OPTIONS, "A: no, B", False),
    ("the red car", OPTIONS, "It is not the red car", False),
    ("the red car", OPTIONS, r"\text{B}", True),
    ("the red car", OPTIONS, "**B**", True),
    ("the red car", OPTIONS, "$B$", True),
    ("$12$", (), "12", True),
    ("12", (), "11$ $12 =", False),
    ("12", (), "x = 12", True),
    ("12", (), "5 = 12", False),
    ("12", (), "1,2", False),
    ("7 am", (), "7 pm", False),
    ("2 dogs", (), "2 cats", False),
    ("12 m", (), "12 cm", False),
    ("no", (), "I have no idea", False),
    ("no", (), "no idea", False),
]


@pytest.mark.parametrize(("gold", "options", "prediction", "right"), MATCHES)
def test_rules(gold, options, prediction, right):
    assert is_correct(prediction, Sample("1", b"", "?", gold, options=options)) is right


def test_a_judge_is_asked_last():
    asked = []

    def judge(question, gold, prediction):
        asked.append((question, gold, prediction))
        return True

    sample = Sample("1", b"", "What is it?", "a sofa")
    assert is_correct("a sofa", sample, judge) and not asked
    assert is_correct("a couch", sample, judge) and asked == [("What is it?", "a sofa", "a couch")]


@pytest.mark.parametrize(
    "text",
    [
        "1" * 500 + "/" + "1" * 480 + "!",
        "answer" + " " * 900 + "!",
        "A" + "(" * 900,
        "$" * 900,
        "9^{9^{9^9}}",
        "yes " * 200,
        "(" * 150 + "1" + ")" * 150,
    ],
)
def test_hostile_answers_are_scored_fast(text):
    began = time.time()
    for gold, options in (
        ("12", ()),
        ("the red car", OPTIONS),
        ("yes", ()),
        (r"\frac{1}{2}", ()),
    ):
        is_correct(text, Sample("1", b"", "?", gold, options=options))
    assert time.time() - began < 8  # math-verify gives up after a second; its import takes some more


@settings(deadline=None)  # the first formula imports math-verify
@given(
    st.text(max_size=60),
    st.sampled_from(["A", "yes", "12", r"\frac{1}{2}", "the red car"]),
    st.booleans(),
)
def test_any_prediction_is_scored_without_an_exception(prediction, gold, choice):
    sample = Sample("1", b"", "?", gold, options=OPTIONS if choice and gold in OPTIONS else ())
    assert is_correct(prediction, sample) in (True, False)
