"""Trajectory + sample -> reward: accuracy, format, and a tool bonus. The weights are those of the paper's
release.

    with the tool     total = 0.8 * accuracy + 0.2 * format + 1.2 * tool
    without           total = 1.2 * accuracy + 0.4 * format       (the ThinkLite rows: one turn, \\boxed{})

accuracy is 0 or 1, format 0 or -1, tool 0 or 1; where a bonus is "priced", tool is 0 and crops cost. The
reward reads fields of the trajectory, never a decoded string: in the released code a crop's wrapper text
could be graded as the answer, and a failed call could look like a delivered one.
"""

from dataclasses import dataclass
from statistics import fmean, stdev

from grading import answers
from grading.correct import MAX_ANSWER_CHARS, is_correct

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
