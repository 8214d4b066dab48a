"""A benchmark as one record, and the functions that several records use."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from data import Sample
from grading.answers import letters
from grading.correct import is_correct
from loading.fields import read_text


@dataclass(frozen=True)
class Benchmark:
    """Where its files are, how a row becomes a question, which answers are correct, what the scores are."""

    repository: str  # on the Hub
    files: tuple[str, ...]  # patterns: the files of the first one that fits are read; for V* those of all
    columns: tuple[str, ...]  # that a row must have, beside its image
    questions: int  # in the public copy; 0: not known here
    make: Callable  # row -> Sample or list of Samples; id and image are filled in later
    # Percent, paper v3, tables 1 to 4: the base as reproduced there, and DeepEyes.
    published: tuple[float, float] | None = None
    beside: tuple[str, ...] = ()  # patterns of files that the rows name
    note: str = ""  # what the benchmark's score does not cover
    right: Callable = is_correct  # (answer, sample, judge) -> bool
    said: Callable | None = None  # answer -> what it chose; None: by the usual rules
    scores: Callable | None = None  # records of an arm -> scores beside the accuracy


def make_question(text: str, answer, options=(), **kwargs) -> Sample:
    """A sample whose id and image are filled in later. Raises ValueError for what is neither text nor
    number."""
    texts = tuple(read_text(option, "options") for option in options)
    return Sample("", b"", text.strip(), read_text(answer, "answer"), texts, **kwargs)


def lettered_options(options: dict | list, answer: str) -> tuple[str, tuple[str, ...]]:
    """The text of the correct option, and all options without their letters.

    >>> lettered_options(["(A) red", "B. -5"], "(b)")
    ('-5', ('red', '-5'))
    """
    if not isinstance(options, dict):
        options = dict(map(split_letter, options))
    letter = answer.strip(" ().\n").upper()
    return options[letter], tuple(options.values())


def split_letter(option: str) -> tuple[str, str]:
    """
    >>> split_letter("(a) red")
    ('A', 'red')
    """
    match = re.match(r"\s*[(\[]?([A-Ia-i])[)\].:]+\s*(.*)", option, re.S)
    letter, text = match.groups()
    return letter.upper(), text.strip()


def choices_in_text(text: str, gold: str, meta: dict) -> Sample:
    """A question whose choices stand in its text. They become options if they can be told apart.

    >>> choices_in_text("How far? Choices: A:1 cm B: 2 cm", "B", {}).options
    ('1 cm', '2 cm')
    >>> choices_in_text("As shown.", "B", {}).answer
    'B'
    """
    head, *rest = re.split(r"(?i)\b(?:choices?|options?)\s*:", text, maxsplit=1)
    parts = re.split(r"(?:^|\s)[(\[]?([A-I])[)\].:]+\s*", "".join(rest))
    labels = "".join(parts[1::2])
    texts = [part.strip(" \n;,") for part in parts[2::2]]
    meta = meta | {"fixed": True}  # the image may show the letters
    in_order = labels == "ABCDEFGHI"[: len(texts)]
    if len(texts) > 1 and in_order and all(texts):
        if gold in list(labels):
            gold = texts[labels.index(gold)]
        if gold in texts:
            return make_question(head, gold, texts, meta=meta, tool=False)
    if re.fullmatch(r"[A-I]", gold):
        text += "\nAnswer with the letter of the right choice."
    return make_question(text, gold, meta=meta, tool=False)


def ask_judge(judge, sample: Sample, answer: str) -> bool:
    if judge is None:
        return False
    return judge(sample.text(), sample.answer, answer)


def right_letters(answer: str, sample: Sample, judge) -> bool:
    """Does the answer name all letters of the gold answer and no other? If the gold answer is not letters,
    the usual rules decide."""
    lettered = re.fullmatch(r"\W*[A-I](?:\W+[A-I])*\W*", sample.answer)
    if sample.options or not lettered:
        return is_correct(answer, sample, judge)
    said = letters(answer)
    return said == letters(sample.answer) if said else ask_judge(judge, sample, answer)


# --------------------------------------------------------------------------------------------------
# Scores, from the records of one arm.


def split_by(records: list[dict], key: str) -> dict[str, list[dict]]:
    """The records by `meta[key]`, sorted."""
    parts = defaultdict(list)
    for record in records:
        parts[record["meta"].get(key)].append(record)
    return {value: parts[value] for value in sorted(parts, key=str)}


def accuracy(records: list[dict]) -> float:
    return fmean(record["right"] for record in records)


def all_right(records: list[dict]) -> bool:
    return all(record["right"] for record in records)


def scores_by(key: str, records: list[dict]) -> dict:
    """The accuracy of each part, and their mean."""
    scores = {}
    for part, rows in split_by(records, key).items():
        scores[f"{key} {part}"] = accuracy(rows)
    scores[f"mean over {key}s"] = fmean(scores.values())
    return scores
