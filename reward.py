"""Trajectory + sample -> reward: accuracy, format, and a tool bonus. The weights are those of the paper's
release.

    with the tool     total = 0.8 * accuracy + 0.2 * format + 1.2 * tool
    without           total = 1.2 * accuracy + 0.4 * format       (the ThinkLite rows: one turn, \\boxed{})

accuracy is 0 or 1, format 0 or -1, tool 0 or 1. The reward reads fields of the record, never a decoded
string: in the released code a crop's wrapper text could be graded as the answer, and a failed call could
look like a delivered one.
"""

import re
from dataclasses import dataclass

from data import Sample

MAX_ANSWER_CHARS = 1000  # the paper's guard against answers that flatter the judge
BONUSES = ("conditional", "unconditional", "none")


@dataclass
class Reward:
    accuracy: float
    format: float
    tool: float
    total: float


def score(trajectory, *, bonus: str = "conditional", judge=None) -> Reward:
    """Reward of one finished trajectory.

    bonus: "conditional" pays the tool term if the answer is right and at least one crop was delivered,
    "unconditional" if a crop was delivered, "none" never. judge: optional callable (question, gold,
    prediction) -> bool for what rules can't tell.
    """
    if bonus not in BONUSES:
        raise ValueError(f"bonus must be one of {', '.join(BONUSES)}, not {bonus!r}")
    sample, answer = trajectory.sample, trajectory.answer
    accuracy = float(is_correct(answer, sample, judge))
    format = 0.0 if well_formed(trajectory) else -1.0
    if not sample.tool:
        return Reward(accuracy, format, 0.0, 1.2 * accuracy + 0.4 * format)
    delivered = len(trajectory.boxes) > 0  # crops that came back, not calls that were written
    tool = float(delivered and (bonus == "unconditional" or bonus == "conditional" and accuracy > 0))
    return Reward(accuracy, format, tool, 0.8 * accuracy + 0.2 * format + 1.2 * tool)


def well_formed(trajectory) -> bool:
    """Every turn closes its tags, and the episode ends in an answer of a sane length."""
    answer = trajectory.answer
    if answer is None or len(answer) >= MAX_ANSWER_CHARS:
        return False
    return all(
        turn.count(f"<{tag}>") == turn.count(f"</{tag}>")
        for turn in trajectory.turns
        for tag in ("think", "tool_call", "answer")
    )


def normalise(text: str) -> str:
    """Lower case, no articles, no closing punctuation, single spaces.

    >>> normalise(" The Red car. ")
    'red car'
    """
    text = re.sub(r"\b(a|an|the)\s", " ", text.lower())
    return " ".join(text.split()).strip(" .,;:!?\"'()[]")


def as_number(text: str) -> float | None:
    """A lone number: thousands separators, percent, currency and a trailing unit are fine, fractions too.

    >>> [as_number(t) for t in ("1,200", "45%", "$3.50", "3/4", "12 cm", "-2", "B2", "1 or 2")]
    [1200.0, 45.0, 3.5, 0.75, 12.0, -2.0, None, None]
    """
    match = re.fullmatch(
        r"[$€£]?\s*(-?\d[\d,]*\.?\d*|-?\.\d+)\s*(?:/\s*(\d+\.?\d*))?\s*(?:%|°|[a-zA-Z]{1,6}[²³]?)?\.?",
        text.strip(),
    )
    if not match or match[2] and float(match[2]) == 0:
        return None
    return float(match[1].replace(",", "")) / float(match[2] or 1)


def option_letter(prediction: str, options: tuple[str, ...]) -> int | None:
    """Which option an answer names: by letter, by "B. text" or "The answer is B", or by the text of exactly
    one option.

    >>> options = ("a blue car", "the red car")
    >>> [option_letter(p, options) for p in ("b", "(B)", "B. the red car", "The answer is B.", "red car")]
    [1, 1, 1, 1, 1]
    >>> [option_letter(p, options) for p in ("A or B", "car", "")]
    [None, None, None]
    """
    text, last = prediction.strip(), chr(64 + len(options))
    exact = [i for i, option in enumerate(options) if normalise(option) == normalise(text)]
    if len(exact) == 1:
        return exact[0]
    match = (
        re.fullmatch(rf"[(\[]?([A-{last}a-{last.lower()}])[)\].:]*", text)
        or re.match(rf"[(\[]?([A-{last}])[)\].:]+\s", text)
        or re.search(
            rf"\b(?:answer|option|choice)\s*(?:is|:)?\s*:?\s*[(\[]?([A-{last}])\b[)\].:]*\s*$", text, re.I
        )
    )
    if match:
        return ord(match[1].upper()) - 65
    named = [
        i
        for i, option in enumerate(options)
        if re.search(rf"(?<!\w){re.escape(normalise(option))}(?!\w)", normalise(text))
    ]
    return named[0] if len(named) == 1 else None


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
    if sample.options:
        wanted = option_letter(gold, sample.options)
        got = option_letter(prediction, sample.options)
        if got is not None and wanted is not None:
            return got == wanted
    if normalise(prediction) == normalise(gold):
        return True
    if normalise(gold) in ("yes", "no"):
        said = re.findall(r"\b(?:yes|no)\b", prediction.lower())
        return bool(said) and set(said) == {normalise(gold)}
    numbers = as_number(prediction), as_number(gold)
    if None not in numbers:
        return abs(numbers[0] - numbers[1]) <= 1e-6 * max(1, abs(numbers[1]))
    formula = set(gold + prediction) & set("\\^=") and re.search(r"[\d\\^=]", gold)
    if formula and same_formula(prediction, gold):
        return True
    return bool(judge and judge(sample.text(), gold, prediction))


def same_formula(prediction: str, gold: str) -> bool:
    """Equality of LaTeX by math-verify (symbolic, no eval); False where it can't parse or takes too long."""
    from math_verify import parse, verify  # a second to import, and only mathematics needs it

    try:
        return bool(verify(parse(f"${gold}$"), parse(f"${prediction}$")))
    except Exception:  # a parser over model text: whatever it raises, the formulas don't match
        return False
