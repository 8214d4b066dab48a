"""Trajectory + sample -> reward: accuracy, format, and a tool bonus. The weights are those of the paper's
release.

    with the tool     total = 0.8 * accuracy + 0.2 * format + 1.2 * tool
    without           total = 1.2 * accuracy + 0.4 * format       (the ThinkLite rows: one turn, \\boxed{})

accuracy is 0 or 1, format 0 or -1, tool 0 or 1; where a bonus is "priced", tool is 0 and crops cost. The
reward reads fields of the trajectory, never a decoded string: in the released code a crop's wrapper text
could be graded as the answer, and a failed call could look like a delivered one.
"""

import re
from dataclasses import dataclass
from statistics import fmean, stdev

import answers
from data import Sample

MAX_ANSWER_CHARS = 1000  # the paper's guard against long answers that sway the judge
# With the tool or without: accuracy, format, tool.
WEIGHTS = {True: (0.8, 0.2, 1.2), False: (1.2, 0.4, 0.0)}
BONUSES = ("conditional", "unconditional", "none", "priced", "priced_all")


@dataclass
class Reward:
    accuracy: float
    format: float
    tool: float
    total: float


def score(trajectory, *, bonus: str = "conditional", call_price=0.05, judge=None) -> Reward:
    """Reward of one finished trajectory.

    bonus: "conditional" pays the tool term if the answer is right and at least one crop was delivered,
    "unconditional" if a crop was delivered, "none" never; "priced" has no bonus, and takes call_price for
    each crop of a right answer (ours, not the paper's: an answer at first sight is worth a little more
    than the same after a zoom), "priced_all" of any answer. judge: optional callable (question, gold,
    prediction) -> bool for what rules can't tell.
    """
    if bonus not in BONUSES:
        raise ValueError(f"bonus must be one of {', '.join(BONUSES)}, not {bonus!r}")
    sample = trajectory.sample
    right = is_correct(trajectory.answer, sample, judge)
    crops = trajectory.delivered  # that came back, not calls that were written
    earned = right if bonus == "conditional" else bonus == "unconditional"
    accuracy = float(right)
    format = 0.0 if well_formed(trajectory) else -1.0
    tool = float(sample.tool and crops > 0 and earned)
    weights = WEIGHTS[sample.tool]
    total = weights[0] * accuracy + weights[1] * format + weights[2] * tool
    if bonus == "priced_all" or (bonus == "priced" and right):
        total -= call_price * crops
    return Reward(accuracy, format, tool, total)


def group_advantages(totals: list[float], scale: str = "std") -> list[float]:
    """How much better than its group each trajectory did: GRPO's baseline is the group's mean.

    totals: the rewards of one group. scale: "std" divides by their standard deviation (GRPO), "mean" does not
    (Dr. GRPO). DeepSeekMath, section 4.1.

    >>> group_advantages([2.0, 0.0], "mean"), [round(a, 3) for a in group_advantages([2.0, 0.0])]
    ([1.0, -1.0], [0.707, -0.707])
    """
    baseline = fmean(totals)
    spread = stdev(totals) + 1e-4 if scale == "std" else 1.0
    return [(total - baseline) / spread for total in totals]


def well_formed(trajectory) -> bool:
    """Every turn closes its tags, and the episode ends in an answer of a sane length; without the tool, in
    just one `\\boxed{}` after the thought."""
    answer = trajectory.answer
    if answer is None or len(answer) >= MAX_ANSWER_CHARS:
        return False
    if not trajectory.sample.tool and answers.count_boxed(trajectory.turns) != 1:
        return False
    return all(
        turn.count(f"<{tag}>") == turn.count(f"</{tag}>")
        for turn in trajectory.turns
        for tag in ("think", "tool_call", "answer")
    )


def is_correct(prediction: str | None, sample: Sample, judge=None) -> bool:
    """Does a prediction agree with the gold answer? Rules first, a judge (if given) only where they can't
    decide.

    >>> is_correct("Yes, it is.", Sample("1", b"", "Is it?", "yes"))
    True
    >>> is_correct("A", Sample("2", b"", "Which letter?", "B"))
    False
    """
    if prediction is None or not prediction.strip() or len(prediction) >= MAX_ANSWER_CHARS:
        return False
    gold = sample.answer
    prediction = answers.unwrap(prediction)
    if "=" not in gold:
        # "x = 12" is fine, "5 = 12" is not.
        prediction = re.sub(r"^(?:\\angle ?)?[a-zA-Z]\w* ?= ?", "", prediction)
    if sample.options:
        got = answers.option_index(prediction, sample.options)
        wanted = gold_option(sample)
        if got is not None and wanted is not None:
            return sample.options[got] == wanted  # by text: two options may say the same
    wanted = answers.normalise(answers.unwrap(gold))
    claim = answers.without_lead(prediction)
    if prediction == gold or wanted in (
        answers.normalise(prediction),
        answers.normalise(claim),
    ):
        return prediction == gold or wanted != ""
    if wanted in ("yes", "no"):
        if said := answers.yes_or_no(prediction):
            return said == wanted
    elif answers.same_number(prediction, answers.unwrap(gold)) or answers.same_formula(
        prediction, gold
    ):
        return True
    return bool(judge and judge(sample.text(), gold, prediction))


def gold_option(sample: Sample) -> str | None:
    """The text of the right option, which the gold answer is or names; None if it does neither."""
    if sample.answer in sample.options:
        return sample.answer
    place = answers.option_index(sample.answer, sample.options)
    return None if place is None else sample.options[place]
