"""Benchmarks whose answer is a box: refCOCO, refCOCO+, refCOCOg, ReasonSeg."""

from statistics import fmean

import numpy as np

from benchmarks.record import Benchmark, accuracy, make_question, split_by
from data import Sample
from tools import BOX

LOCATE = 'Where is "{}"? Give its bounding box as ' + BOX + "."


def make_referring(row: dict) -> list[Sample]:
    """A question for each sentence about the object."""
    x, y, width, height = row["bbox"]
    box = (x, y, x + width, y + height)
    sentences = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    meta = {"kind": row["split"]}
    return [make_question(LOCATE.format(s), str(list(box)), boxes=(box,), meta=meta) for s in sentences]


def make_reasonseg(row: dict) -> Sample:
    ys, xs = np.nonzero(np.asarray(row["mask"], dtype=bool))
    box = tuple(float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    return make_question(LOCATE.format(row["text"]), str(list(box)), boxes=(box,), meta={"kind": "test"})


def scores_grounding(records: list[dict]) -> dict:
    splits = split_by(records, "kind").values()
    return {
        "accuracy at IoU 0.5": accuracy(records),
        "mean IoU": fmean(record["box_iou"] for record in records),
        "mean accuracy of splits": fmean(map(accuracy, splits)),
    }


def referring(name: str, files: str, sentences: int, published: tuple, splits: str) -> Benchmark:
    return Benchmark(
        repository=f"lmms-lab-encoder/{name}",
        files=(files,),
        columns=("bbox", "answer"),
        questions=sentences,
        make=make_referring,
        published=published,
        note=f"{splits}. Prompt: ours, the paper's is unknown.",
        scores=scores_grounding,
    )


GROUNDING = {
    "refcoco": referring(
        "RefCOCO",
        "test[AB]-*.parquet",
        10752,
        (89.1, 89.8),
        "Splits testA, testB (the Hub's val is mixed up)",
    ),
    "refcoco+": referring("RefCOCOplus", "test[AB]-*.parquet", 10615, (82.6, 83.6), "Splits testA, testB"),
    "refcocog": referring("RefCOCOg", "test-*.parquet", 9602, (86.1, 86.7), "Split test"),
    "reasonseg": Benchmark(
        repository="Ricky06662/ReasonSeg_test",
        files=("*.parquet",),
        columns=("text", "mask"),
        questions=779,
        make=make_reasonseg,
        published=(68.3, 68.6),
        note="Our own protocol: IoU with the mask's box. Official gIoU and cIoU need a segmenter.",
        scores=scores_grounding,
    ),
}
