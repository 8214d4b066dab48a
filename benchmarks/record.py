"""A benchmark as one record, and the small parts that the records are built from."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from answers import letters
from data import Sample
from reward import is_correct


@dataclass(frozen=True)
class Benchmark:
    """Where its files are, how a row becomes a question, what is right, and what its score is."""

    repository: str  # on the Hub
    files: tuple[str, ...]  # the first pattern that any file matches; for V* all of them
    questions: int  # in the public copy
    make: Callable  # row -> Sample or list of Samples (id and image are filled in)
    published: tuple[
        float, float
    ]  # percent, paper v3, tables 1 to 4: the base as reproduced there, DeepEyes
    note: str = ""  # what its number does not cover
    right: Callable = is_correct  # (answer, sample, judge) -> bool
    scores: Callable | None = None  # records of an arm -> scores beyond plain accuracy
    kind: str = "looking"  # "looking" | "grounding" (the answer is a box) | "reasoning" (no zoom on offer)


def make_question(text: str, answer, options=(), **more) -> Sample:
    """A sample whose id and image are filled in later."""
    if answer is None:
        raise ValueError("no answer")
    return Sample("", b"", text.strip(), str(answer), tuple(options), **more)


def lettered_options(options: dict | list, answer: str) -> tuple[str, tuple[str, ...]]:
    """The text of the right option, and all options without their letters.

    >>> lettered_options(["(A) red", "B. -5"], "(b)")
    ('-5', ('red', '-5'))
    """
    if not isinstance(options, dict):
        parts = [
            re.match(r"\s*[(\[]?([A-Ia-i])[)\].:]+\s*(.*)", option, re.S).groups()
            for option in options
        ]
        options = {letter.upper(): text.strip() for letter, text in parts}
    return options[answer.strip(" ().\n").upper()], tuple(options.values())


def choices_in_text(text: str, gold: str, meta: dict) -> Sample:
    """A question with its choices in the text, as options where they can be told apart, else as it stands.

    >>> choices_in_text("How far? Choices: A:1 cm B: 2 cm", "B", {}).options
    ('1 cm', '2 cm')
    >>> choices_in_text("As shown.", "B", {}).answer
    'B'
    """
    head, *rest = re.split(r"(?i)\b(?:choices?|options?)\s*:", text, maxsplit=1)
    parts = re.split(r"(?:^|\s)[(\[]?([A-I])[)\].:]+\s*", "".join(rest))[1:]
    labels = "".join(parts[::2])
    texts = tuple(part.strip(" \n;,") for part in parts[1::2])
    meta = meta | {"fixed": True}  # the picture may show the letters
    in_order = labels == "ABCDEFGHI"[: len(texts)]
    if len(texts) > 1 and in_order and gold in labels and all(texts):
        return make_question(head, texts[labels.index(gold)], texts, meta=meta, tool=False)
    text += "\nAnswer with the letter of the right choice."
    return make_question(text, gold, meta=meta, tool=False)


def ask_judge(judge, sample: Sample, answer: str) -> bool:
    return bool(judge and judge(sample.text(), sample.answer, answer))


def right_letters(answer: str, sample: Sample, judge) -> bool:
    """All the gold's letters and no other; what is no letter by the usual rules."""
    if sample.options or not re.fullmatch(r"\W*[A-I](?:\W+[A-I])*\W*", sample.answer):
        return is_correct(answer, sample, judge)
    said = letters(answer)
    return said == letters(sample.answer) or (not said and ask_judge(judge, sample, answer))


# --------------------------------------------------------------------------------------------------
# Scores, from the records of one arm.


def split_by(records: list[dict], key: str) -> dict[str, list[dict]]:
    """The records by `meta[key]`, sorted."""
    parts = defaultdict(list)
    for record in records:
        parts[record["meta"].get(key)].append(record)
    return dict(sorted(parts.items(), key=lambda part: str(part[0])))


def accuracy(records: list[dict]) -> float:
    return fmean(record["right"] for record in records)


def all_right(records: list[dict]) -> bool:
    return all(record["right"] for record in records)


def scores_by(key: str, records: list[dict]) -> dict:
    """The accuracy of each part, and their mean."""
    parts = {f"{key} {part}": accuracy(rows) for part, rows in split_by(records, key).items()}
    return parts | {f"mean over {key}s": fmean(parts.values())}
