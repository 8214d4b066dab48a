"""Trajectory + sample -> reward: accuracy, format, and a tool bonus. The weights are those of the paper's
release.

    with the tool     total = 0.8 * accuracy + 0.2 * format + 1.2 * tool - price + curiosity
    without           total = 1.2 * accuracy + 0.4 * format       (the ThinkLite rows: one turn, \\boxed{})

accuracy is 0 or 1, format 0 or -1, tool 0 or 1; price and curiosity are ours, and 0 unless asked for. The
reward reads fields of the trajectory, never a decoded string: in the released code a crop's wrapper text
could be graded as the answer, and a failed call could look like a delivered one.
"""

from dataclasses import dataclass
from statistics import fmean, stdev

from grading.answers import count_boxed
from grading.correct import MAX_ANSWER_CHARS, is_correct

# With the tool or without: accuracy, format, tool.
WEIGHTS = {True: (0.8, 0.2, 1.2), False: (1.2, 0.4, 0.0)}
BONUSES = ("conditional", "unconditional", "none")
PRICED = ("right", "all")


@dataclass
class Reward:
    accuracy: float
    format: float
    tool: float
    total: float
    price: float = 0.0  # of the crops; taken off the total
    curiosity: float = 0.0  # for a crop; added to the total


def score(
    trajectory, *, bonus="conditional", judge=None, crop_price=0.0, crop_price_on="right", curiosity=0.0
) -> Reward:
    """Reward of one finished trajectory.

    bonus: "conditional" pays the tool term if the answer is correct and at least one crop was delivered,
    "unconditional" if a crop was delivered, "none" never. judge: optional callable (question, gold,
    prediction) -> bool for what rules can't tell. crop_price: taken off for each delivered crop of a correct
    answer, or of any answer if crop_price_on is "all" (ours, not the paper's: an answer at first sight is
    then worth a little more than the same answer after a zoom). curiosity: added where a crop was delivered,
    for whatever answer (ours; train.py pays it while few zoom).
    """
    if bonus not in BONUSES:
        raise ValueError(f"bonus must be one of {', '.join(BONUSES)}, not {bonus!r}")
    if crop_price_on not in PRICED:
        raise ValueError(f"crop_price_on must be one of {', '.join(PRICED)}, not {crop_price_on!r}")
    sample = trajectory.sample
    correct = is_correct(trajectory.answer, sample, judge)
    crops = trajectory.delivered  # that came back, not calls that were written
    earned = correct if bonus == "conditional" else bonus == "unconditional"
    accuracy = float(correct)
    format = 0.0 if well_formed(trajectory) else -1.0
    tool = float(sample.tool and crops > 0 and earned)
    price = crop_price * crops if correct or crop_price_on == "all" else 0.0
    curiosity = curiosity if crops > 0 else 0.0
    weights = WEIGHTS[sample.tool]
    total = weights[0] * accuracy + weights[1] * format + weights[2] * tool - price + curiosity
    return Reward(accuracy, format, tool, total, price, curiosity)


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
    """Every turn closes its tags, and the trajectory ends in an answer of a sane length; without the tool, in
    just one `\\boxed{}` after the thought."""
    answer = trajectory.answer
    if answer is None or len(answer) >= MAX_ANSWER_CHARS:
        return False
    if not trajectory.sample.tool and count_boxed(trajectory.turns) != 1:
        return False
    return all(
        turn.count(f"<{tag}>") == turn.count(f"</{tag}>")
        for turn in trajectory.turns
        for tag in ("think", "tool_call", "answer")
    )
