"""Benchmarks of reasoning over images, in mathematics and logic; by default the zoom is not offered."""

import re
from collections import defaultdict
from functools import partial
from statistics import fmean

from benchmarks.record import (
    Benchmark,
    accuracy,
    ask_judge,
    choices_in_text,
    lettered_options,
    make_question,
    right_letters,
    scores_by,
    split_by,
)
from data import Sample
from grading.answers import DENIES, last_number, option_index
from grading.correct import is_correct
from loading.fields import read_question


def make_mathvista(row: dict) -> Sample:
    unit = f" (Unit: {row['unit']})" if row.get("unit") else ""
    meta = {
        "kind": row["metadata"]["task"],
        "type": row["answer_type"],
        "precision": row.get("precision"),
    }
    return make_question(row["question"] + unit, row["answer"], row["choices"] or (), meta=meta, tool=False)


def all_numbers(text: str) -> list[float]:
    """
    >>> all_numbers("[1.5, -2]")
    [1.5, -2.0]
    """
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def right_mathvista(answer: str, sample: Sample, judge) -> bool:
    """The official comparison: of whole numbers, or of numbers rounded to the item's precision."""
    kind = sample.meta["type"]
    value = last_number(answer)
    if sample.options or kind == "text":
        return is_correct(answer, sample, judge)
    if kind == "list":
        said = all_numbers(answer)
        return said == all_numbers(sample.answer) and said != []
    if value is None or abs(value) > 1e15:
        return ask_judge(judge, sample, answer)
    if kind == "integer":
        return int(value) == int(float(sample.answer))
    digits = int(sample.meta["precision"] or 2)  # stored as 1.0, which round() refuses
    return round(value, digits) == round(float(sample.answer), digits)


def make_mathverse(row: dict) -> Sample:
    # Empty for a Vision Only row: its question is in the image alone.
    text = row["query_cot"].split("Question:")[-1]
    meta = {
        "kind": row["problem_version"],
        "type": row["question_type"],
        "group": row["problem_index"],
        "asked": row["question_for_eval"],  # what a judge is told
    }
    if row["question_type"] == "multi-choice":
        return choices_in_text(text, row["answer"].strip(" ()\n"), meta)
    gold = without_label(row["answer"])
    return make_question(text or row["question_for_eval"], gold, meta=meta, tool=False)


def without_label(gold: str) -> str:
    """A free-form gold answer of MathVerse without its label, and without the dollars around a formula.

    >>> without_label(r"Area $=113.1 \\mathrm{~cm}^{2}$"), without_label("x=4"), without_label("60°")
    ('113.1 \\\\mathrm{~cm}^{2}', 'x=4', '60°')
    """
    labelled = re.fullmatch(r"[A-Z][a-z]+[\w ]*\$?\s*=\s*(.*?)\$?", gold.strip(), re.S)
    return labelled[1].strip() if labelled else gold


def right_mathverse(answer: str, sample: Sample, judge) -> bool:
    """The letters, or the usual rules, or the same number however its unit is written."""
    if right_letters(answer, sample, None):
        return True
    has_unit = re.search(r"\\mathrm|\\text", sample.answer)
    if has_unit and not sample.options:
        said = last_number(answer)
        return said is not None and said == last_number(sample.answer)
    return right_letters(answer, sample, judge)


def make_mathvision(row: dict) -> Sample:
    text = re.sub(r"<image\d+>", "", row["question"]).strip()
    text = text or "Solve the problem in the picture."
    options = row["options"] or ()
    answer = row["answer"]
    # Bare A, B, C ... stand for options that are drawn in the image.
    drawn = [option.strip() for option in options] == list("ABCDE"[: len(options)])
    if options and not drawn and re.fullmatch(r"\s*[A-E]\s*", answer):
        answer = options[ord(answer.strip()) - 65]
    meta = {"kind": row["subject"], "level": row["level"]}
    return make_question(text, answer, () if drawn else options, meta=meta, tool=False)


def right_mathvision(answer: str, sample: Sample, judge) -> bool:
    """The usual rules; numbers must agree to two decimals, as officially."""
    if sample.options or re.search(r"[,;(\[=]", sample.answer) or re.fullmatch(r"[A-E]", sample.answer):
        return right_letters(answer, sample, judge)
    values = last_number(answer), last_number(sample.answer)
    if None not in values and not re.search(r"[a-zA-Z]{2}", re.sub(r"\\[a-z]+", "", sample.answer)):
        return round(values[0], 2) == round(values[1], 2)
    return is_correct(answer, sample, judge)


def split_options(text: str) -> list[str]:
    """We-Math's options, "A. ...; B. ...": only the next letter in order starts a new option.

    >>> split_options("A. Shape ;C.; B．2; C. No correct answer;")
    ['A. Shape ;C.', 'B.2', 'C. No correct answer']
    """
    text = text.replace("．", ".").strip("; ")
    options = []
    for letter in "BCDEFGHI":
        parts = re.split(rf";\s*(?={letter}\.)", text, maxsplit=1)
        options.append(parts[0].strip("; "))
        if len(parts) == 1:
            break
        text = parts[1]
    return options


def make_wemath(row: dict) -> Sample:
    options = split_options(row["option"])
    answer, texts = lettered_options(options, row["answer"])
    meta = {"kind": row["key"], "group": row["ID"]}
    # A few rows have two options of the same text. There the letter decides, so the order is kept.
    if len(set(texts)) < len(texts):
        meta |= {"fixed": True, "letter": row["answer"].strip(" ().")}
    return make_question(row["question"], answer, texts, meta=meta, tool=False)


def right_wemath(answer: str, sample: Sample, judge) -> bool:
    """The usual rules; of two options with the same text only one letter is correct, as officially."""
    letter = sample.meta.get("letter")
    if letter is None:
        return is_correct(answer, sample, judge)
    index = option_index(answer, sample.options)
    return index is not None and chr(65 + index) == letter


def scores_wemath(records: list[dict]) -> dict:
    """The four-way score over problems, by the answers to a problem's steps and to the problem itself.

    IK insufficient knowledge, IG inadequate generalisation, CM complete mastery, RM rote memorisation; the
    latter two strict (all steps correct) or loose (any).
    """
    counts = defaultdict(int)
    for rows in split_by(records, "group").values():
        multi = [row["right"] for row in rows if row["meta"]["kind"].endswith("multi")]
        steps = [row["right"] for row in rows if not row["meta"]["kind"].endswith("multi")]
        if not multi or not steps:
            continue
        counts["problems"] += 1
        if not multi[0]:
            counts["IG" if all(steps) else "IK"] += 1
        else:
            counts["CM strict" if all(steps) else "RM strict"] += 1
            counts["CM loose" if any(steps) else "RM loose"] += 1
    n = max(1, counts.pop("problems", 0))
    result = {kind: (counts["CM " + kind] + 0.5 * counts["IG"]) / n for kind in ("strict", "loose")}
    result |= {name: counts[name] / n for name in ("IK", "IG", "CM strict", "CM loose")}
    for kind in ("strict", "loose"):
        mastered = counts["CM " + kind] + counts["RM " + kind]
        result["RM " + kind] = counts["RM " + kind] / max(1, mastered)
    return result


def make_dynamath(row: dict) -> Sample:
    kind = " ".join(row["subject"].split())
    meta = {"kind": kind, "type": row["answer_type"], "group": row["id"]}
    if row["answer_type"] == "multiple choice":
        return choices_in_text(row["question"], row["ground_truth"].strip(" ()"), meta)
    note = "\nGive numbers to three decimals." if row["answer_type"] == "float" else ""
    return make_question(row["question"] + note, row["ground_truth"], meta=meta, tool=False)


def stands_in(gold: str, answer: str) -> bool:
    """Is the gold in the answer, word for word but for case and punctuation, and not denied?

    >>> [stands_in("even function", said) for said in ("It is an Even  function.", "function")]
    [True, False]
    >>> stands_in("May", "maybe"), stands_in("odd", "not odd")
    (False, False)
    """
    said = re.findall(r"\w+", answer.lower())
    wanted = re.findall(r"\w+", gold.lower())
    starts = range(len(said) - len(wanted) + 1)
    found = any(said[start : start + len(wanted)] == wanted for start in starts)
    return found and (bool(DENIES.search(gold)) or not DENIES.search(answer))


def right_dynamath(answer: str, sample: Sample, judge) -> bool:
    """Numbers must agree to 0.001, options by the usual rules; a text gold must stand in the answer."""
    kind = sample.meta["type"]
    gold = sample.answer
    if kind in ("float", "int"):
        value = last_number(answer)
        wanted = last_number(gold)
        if value is None:
            return ask_judge(judge, sample, answer)
        return wanted is not None and abs(value - wanted) <= 0.001
    if kind == "text" and len(gold) > 1:
        return stands_in(gold, answer) or ask_judge(judge, sample, answer)
    return right_letters(answer, sample, judge)


def scores_dynamath(records: list[dict]) -> dict:
    worst = fmean(all(r["right"] for r in rows) for rows in split_by(records, "group").values())
    return {"average case": accuracy(records), "worst case": worst}


def make_logicvista(row: dict) -> Sample:
    skill = row.get("skill") or "all skills"
    meta = {"kind": skill[0] if isinstance(skill, list) else skill}
    text = read_question(row["question"]) + " Answer with the letter or letters of your choice."
    return make_question(text, row["answer"], meta=meta, tool=False)


MATHVERSE_COLUMNS = (
    "query_cot",
    "question_for_eval",
    "answer",
    "question_type",
    "problem_version",
    "problem_index",
)
REASONING = {
    "mathvista": Benchmark(
        repository="AI4Math/MathVista",
        files=("testmini-*.parquet",),
        columns=("question", "answer", "choices", "answer_type", "metadata"),
        questions=1000,
        make=make_mathvista,
        published=(68.3, 70.1),
        note="Here a badly formatted answer is wrong; officially a language model extracts the answer.",
        right=right_mathvista,
        scores=partial(scores_by, "type"),
    ),
    "mathverse": Benchmark(
        repository="AI4Math/MathVerse",
        files=("testmini.parquet", "testmini-*.parquet"),
        columns=MATHVERSE_COLUMNS,
        questions=3940,
        make=make_mathverse,
        published=(45.6, 47.3),
        note="A lower bound for free-form answers (45 %): officially a language model grades them (--judge).",
        right=right_mathverse,
        scores=partial(scores_by, "type"),
    ),
    "mathvision": Benchmark(
        repository="MathLLMs/MathVision",
        files=("test-*.parquet",),
        columns=("question", "options", "answer", "subject", "level"),
        questions=3040,
        make=make_mathvision,
        published=(25.6, 26.6),
        note="Formulas are compared by math-verify, not by evaluating what the model wrote.",
        right=right_mathvision,
        scores=partial(scores_by, "level"),
    ),
    "wemath": Benchmark(
        repository="We-Math/We-Math",
        files=("testmini-*.parquet", "*.parquet"),
        columns=("ID", "key", "question", "option", "answer"),
        questions=1740,
        make=make_wemath,
        published=(34.6, 38.9),
        note="The paper's figure is a four-way score, strict or loose unknown, not plain accuracy.",
        right=right_wemath,
        scores=scores_wemath,
    ),
    "dynamath": Benchmark(
        repository="DynaMath/DynaMath_Sample",
        files=("sample[0-9]*-*.parquet",),
        columns=("id", "question", "ground_truth", "answer_type", "subject"),
        questions=5010,
        make=make_dynamath,
        published=(53.3, 55.0),
        note="--limit takes seed questions with all their variants, so that the worst case is defined.",
        right=right_dynamath,
        scores=scores_dynamath,
    ),
    "logicvista": Benchmark(
        repository="lscpku/LogicVista",
        files=("dataset.json", "*.parquet"),
        columns=("question", "answer"),
        questions=447,
        make=make_logicvista,
        published=(45.9, 47.7),
        note="v1_382 has neither question nor answer and is left out: 447 of 448.",
        right=right_letters,
    ),
}
