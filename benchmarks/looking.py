"""Benchmarks of search and perception: V*, HR-Bench, MME-RealWorld, POPE; and after the paper TreeBench,
VisualProbe, ZoomBench."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks.record import (
    Benchmark,
    accuracy,
    all_right,
    lettered_options,
    make_question,
    scores_by,
    split_by,
)
from data import VISUALPROBE_COLUMNS, Sample, visualprobe_sample
from grading.answers import unwrap
from grading.boxes import iou
from grading.correct import MAX_ANSWER_CHARS, is_correct
from loading.fields import read_boxes, read_options, read_question, read_sized_boxes
from safe.files import read_json

ASK_LETTER = " Answer with the letter of the right option."


def make_vstar(file: Path) -> Sample:
    """A sample of a .json file and the image of the same name. The file's boxes are x, y, width, height."""
    row = read_json(file)
    category = file.parent.name
    beside = sorted(file.parent.iterdir())
    images = [path for path in beside if path.stem == file.stem and path.suffix != ".json"]
    if not images:
        raise ValueError(f"no image beside {file}")
    boxes = read_sized_boxes(row["bbox"])
    meta = {"kind": category}
    text = read_question(row["question"]) + ASK_LETTER
    options = read_options(row["options"])
    sample = make_question(text, options[0], options, boxes=boxes, meta=meta)
    return replace(sample, id=f"{category}-{file.stem}", image=str(images[0]))


def right_as_paper(answer: str, sample: Sample, judge) -> bool:
    """As in the paper's script for V*: a lone letter decides, or "B. its text" anywhere in the answer, else
    the judge. Without a judge, our rules decide.

    >>> cat = Sample("1", b"", "Which?", "a cat", options=("a dog", "a cat"))
    >>> [right_as_paper(said, cat, None) for said in ("B", "A.", "I see. B. a cat, I think")]
    [True, False, True]
    """
    letters = [chr(65 + index) for index, text in enumerate(sample.options) if text == sample.answer]
    said = unwrap(answer)[1 - MAX_ANSWER_CHARS :]  # of a long message the end
    if len(said) == 1 or len(said) == 2 and said[1] == ".":
        return said[0] in letters
    if any(f"{letter}. {sample.answer}" in said for letter in letters):
        return True
    return judge(sample.text(), sample.answer, said) if judge else is_correct(said, sample)


def make_hrbench(row: dict) -> Sample:
    options = {letter: str(row[letter]) for letter in "ABCD" if row[letter] is not None}
    answer, options = lettered_options(options, row["answer"])
    meta = {
        "kind": {"single": "FSP", "cross": "FCP"}[row["category"]],
        "fixed": True,
        "cycle": str(row["cycle_category"]),
        "group": f"{row['question']} {sorted(options)}",
    }
    return make_question(row["question"], answer, options, meta=meta)


def scores_hrbench(records: list[dict]) -> dict:
    cycles = [accuracy(rows) for rows in split_by(records, "cycle").values()]
    groups = split_by(records, "group").values()
    return {"mean of cycles": fmean(cycles), "all cycles right": fmean(map(all_right, groups))}


def make_mme(row: dict) -> Sample:
    answer, options = lettered_options(row["multi-choice options"], row["answer"])
    task, _, domain = row["category"].partition("/")
    meta = {"kind": task, "domain": f"{task}, {domain}"}
    return make_question(row["question"], answer, options, meta=meta)


def make_pope(row: dict) -> Sample:
    text = row["question"].strip() + " Answer yes or no."
    return make_question(text, row["answer"].strip().lower(), meta={"kind": row["category"]})


def said_pope(answer: str) -> str:
    """The official rule: no if the first sentence has the word no or not, else yes.

    >>> said_pope("There is no cup."), said_pope("Yes, there is a dog and a cat. No cup."), said_pope("a cup")
    ('no', 'yes', 'yes')
    """
    first = unwrap(answer).split(".")[0].replace(",", " ").lower()
    return "no" if {"no", "not"} & set(first.split()) else "yes"


def right_pope(answer: str, sample: Sample, judge) -> bool:
    return said_pope(answer) == sample.answer


def scores_pope(records: list[dict]) -> dict:
    """Precision, recall, F1 and the fraction of yes, by split, where yes is positive. The mean accuracy."""
    scores = {}
    splits = split_by(records, "kind")
    for split, rows in splits.items():
        said = [row["said"] == "yes" for row in rows]
        gold = [row["gold"] == "yes" for row in rows]
        hits = sum(a and b for a, b in zip(said, gold))
        precision = hits / max(1, sum(said))
        recall = hits / max(1, sum(gold))
        scores[f"{split}: precision"] = precision
        scores[f"{split}: recall"] = recall
        scores[f"{split}: F1"] = 2 * precision * recall / max(1e-9, precision + recall)
        scores[f"{split}: yes ratio"] = fmean(said)
    scores["mean accuracy of splits"] = fmean(map(accuracy, splits.values()))
    return scores


# --------------------------------------------------------------------------------------------------
# After the paper.


def make_treebench(row: dict) -> Sample:
    """The options stand in columns of their own (for VLMEvalKit), in one column (for the authors' script),
    or, of OCR, in the question."""
    text = row["question"]
    options = {letter: row[letter] for letter in "ABCD" if row.get(letter)}
    options = options or (row.get("multi-choice options") or "").splitlines()
    if not options:
        text, options = split_choices(text)
    answer, options = lettered_options(options, row["answer"])
    boxes = read_boxes(row["target_instances"])
    meta = {"kind": row["category"].partition("/")[0], "task": row["category"]}
    return make_question(text, answer, options, boxes=boxes, meta=meta)


def scores_treebench(records: list[dict]) -> dict:
    """The accuracy of each task, and the mean IoU: of each target with its best box, then over the question's
    targets, then over the questions with targets."""
    overlaps = []
    for record in records:
        best = []
        for target in record["targets"]:
            best.append(max((iou(box, target) for box in record["boxes"]), default=0.0))
        if best:
            overlaps.append(fmean(best))
    found = {"mean IoU": fmean(overlaps)} if overlaps else {}
    return scores_by("task", records) | found


def make_zoombench(row: dict) -> Sample:
    text = read_question(row["query"])
    kind = row["question_type"]
    boxes = read_boxes(row["bbox"])
    if kind != "mcq":
        return make_question(text, row["response"], boxes=boxes, meta={"kind": kind})
    text, options = split_choices(text)
    answer, options = lettered_options(options, str(row["response"]))
    return make_question(text, answer, options, boxes=boxes, meta={"kind": kind})


def split_choices(text: str) -> tuple[str, list[str]]:
    r"""A question, and the lines of its options, from the one that begins with A on.

    >>> split_choices("How many? Select from the following choices.\n(A) 0\n(B) 2")
    ('How many? Select from the following choices.', ['(A) 0', '(B) 2'])
    """
    question, *options = re.split(r"\n\s*(?=[(\[]?A[)\].:])", text, maxsplit=1)
    return question.strip(), "".join(options).splitlines()


ROTATED = "Its own four rotations of the options stand in for shuffling; a row counts once."
HRBENCH_COLUMNS = ("question", "A", "B", "C", "D", "answer", "category", "cycle_category")
LOOKING = {
    "vstar": Benchmark(
        repository="craigwu/vstar_bench",
        files=("direct_attributes/*", "relative_position/*"),
        columns=("question", "options", "bbox"),
        questions=191,
        make=make_vstar,
        published=(71.2, 90.1),
        note="The official order has the correct option first in every question; ours is shuffled.",
    ),
    "hrbench4k": Benchmark(
        repository="DreamMr/HR-Bench",
        files=("hr_bench_4k*.parquet",),
        columns=HRBENCH_COLUMNS,
        questions=800,
        make=make_hrbench,
        published=(68.8, 75.1),
        note=ROTATED,
        scores=scores_hrbench,
    ),
    "mme-realworld-lite": Benchmark(
        repository="yifanzhang114/MME-RealWorld-lite-lmms-eval",
        files=("*.parquet",),
        columns=("question", "multi-choice options", "answer", "category"),
        questions=1919,
        make=make_mme,
        published=(42.3, 53.2),
        note="The option of the final answer counts; officially the reply's first A to E.",
        scores=partial(scores_by, "domain"),
    ),
    "treebench": Benchmark(
        repository="HaochenWang/TreeBench",
        files=("TreeBench.tsv",),
        columns=("question", "answer", "category", "target_instances"),
        questions=405,
        make=make_treebench,
        note="Officially a letter must stand alone, and boxes are those of <box>; ours are those of zooms.",
        scores=scores_treebench,
    ),
    **{
        f"visualprobe-{level.lower()}": Benchmark(
            repository=f"Mini-o3/VisualProbe_{level}",
            files=("val.json",),
            beside=("data/*",),
            columns=VISUALPROBE_COLUMNS,
            questions=0,
            make=visualprobe_sample,
            note="Officially a language model judges, the mean of 32 sampled answers; here rules, or --judge."
            f" So Mini-o3's authors give {base} % for Qwen2.5-VL-7B and {deepeyes} % for DeepEyes-7B.",
        )
        for level, base, deepeyes in (("Easy", 39.1, 60.1), ("Medium", 26.0, 29.8), ("Hard", 23.9, 35.1))
    },
    "zoombench": Benchmark(
        repository="inclusionAI/ZoomBench",
        files=("test*.parquet",),
        columns=("query", "response", "question_type", "bbox"),
        questions=845,
        make=make_zoombench,
        note="Officially a language model judges what is not equal by rules; here rules, or --judge. The arm"
        " oracle shows the region of its box, as its own crops do.",
    ),
    "pope": Benchmark(
        repository="lmms-lab-encoder/POPE",
        files=("test-*.parquet",),
        columns=("question", "answer", "category"),
        questions=9000,
        make=make_pope,
        published=(85.9, 87.7),
        note="Official rule: no or not in the first sentence is a no, else a yes. A missing answer is wrong.",
        right=right_pope,
        said=said_pope,
        scores=scores_pope,
    ),
}
LOOKING["hrbench8k"] = replace(
    LOOKING["hrbench4k"],
    files=("hr_bench_8k*.parquet",),
    published=(65.3, 72.6),
)
LOOKING["mme-realworld"] = replace(
    LOOKING["mme-realworld-lite"],
    repository="yifanzhang114/MME-RealWorld-Lmms-eval",
    questions=0,
    published=None,
)
