"""Benchmarks, the paper's and later ones: their public files as samples, and their own scores, by rules.

The files are read from a folder, or fetched from the Hub. Each benchmark is one record (see record.py). The
layouts are those of the Hub in August 2026; those of TreeBench, VisualProbe and ZoomBench are as other
repositories read them in October.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets

from benchmarks.grounding import GROUNDING
from benchmarks.looking import LOOKING, right_as_paper
from benchmarks.reasoning import REASONING
from benchmarks.record import Benchmark
from data import Sample, collect, find_folder
from evaluation.scores import plain_grade
from grading.answers import chosen_by
from grading.boxes import answer_box, iou
from loading.files import (
    cell_image,
    check_one_image,
    composed,
    inside,
    listed_rows,
    need_columns,
    parquet,
    tsv,
)
from safe.files import read_json

BENCHMARKS: dict[str, Benchmark] = LOOKING | GROUNDING | REASONING
# The image is in the first of these columns that a file has.
IMAGE_COLUMNS = ("decoded_image", "image", "bytes", "image_path")


def load_benchmark(
    name: str,
    root: str | None = None,
    revision: str | None = None,
    allow_outside: bool = False,
) -> list[Sample]:
    """All questions of a benchmark; images are read when they are opened.

    root: a folder with the files of the Hub's repository; without one they come from the Hub. revision: a
    commit there. allow_outside: rows may name images outside the folder. Bad rows are left out
    and named in runs/bad-rows-NAME.jsonl. Raises ValueError if files are missing.
    """
    benchmark = BENCHMARKS[name]
    only = [f"*{pattern}" for pattern in (*benchmark.files, *benchmark.beside)]
    folder = find_folder(root, benchmark.repository, only, revision)
    if name == "vstar":
        rows = file_rows(folder, benchmark)
    else:
        rows = table_rows(folder, benchmark, name, allow_outside)
    samples = collect(rows, name)
    if benchmark.questions and len(samples) != benchmark.questions:
        print(f"{name}: {len(samples)} questions here, {benchmark.questions} in the public copy")
    return samples


def file_rows(folder: Path, benchmark: Benchmark):
    """(where, function that makes the sample) for every .json file; each is one question."""
    for pattern in benchmark.files:
        files = sorted(folder.glob(f"{pattern}.json"))
        if not files:
            raise ValueError(f"{folder} holds no {pattern}.json, the files of vstar")
        for file in files:
            yield f"{file.parent.name}-{file.stem}", partial(benchmark.make, file)


def table_rows(folder: Path, benchmark: Benchmark, name: str, allow_outside: bool):
    """(where, function that makes the samples) for every row of the files of the first pattern that fits."""
    found = [sorted(folder.rglob(pattern)) for pattern in benchmark.files]
    files = next(filter(None, found), None)
    if files is None:
        raise ValueError(f"{folder} holds no {' or '.join(benchmark.files)}, the files of {name}")
    for file in files:
        if file.name == "val.json":
            yield from listed_rows(file, benchmark.columns, benchmark.make, allow_outside)
        elif file.suffix == ".json":
            yield from named_rows(folder, file, benchmark, allow_outside)
        else:
            yield from held_rows(folder, file, benchmark, allow_outside)


def named_rows(folder: Path, file: Path, benchmark: Benchmark, allow_outside: bool):
    """The rows of a .json file, which name an image that may lie in any folder below."""
    rows = json_table(file, (*benchmark.columns, "imagename"))
    folders = {composed(path.name): path.parent for path in sorted(folder.rglob("*"))}

    def make(key: str, row: dict) -> list[Sample]:
        name = row["imagename"]
        image = inside(folders.get(composed(name), folder), name, allow_outside)
        return make_samples(benchmark, row, key, image, file)

    for key, row in rows.items():
        yield f"{file.name}, {key}", partial(make, key, row)


def json_table(file: Path, columns: tuple[str, ...]) -> dict[str, dict]:
    """Rows by their names. Raises ValueError that names the file if it is broken or lacks a column."""
    rows = read_json(file)
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ValueError(f"{file} holds no rows by their names")
    need_columns(columns, set().union(*rows.values()), file)
    return rows


def held_rows(folder: Path, file: Path, benchmark: Benchmark, allow_outside: bool):
    """The rows of a parquet or .tsv file, which hold their images."""
    rows = (tsv if file.suffix == ".tsv" else parquet)(file, benchmark.columns)
    images = [column for column in IMAGE_COLUMNS if column in rows.column_names]
    if not images:
        raise ValueError(f"{file} lacks a column with images: one of {', '.join(IMAGE_COLUMNS)}")
    # The library itself would open any image that a cell names
    pictures = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    texts = rows.remove_columns({*images, *pictures, "solution"} & set(rows.column_names))

    def make(i: int) -> list[Sample]:
        check_one_image(rows, i, images[0])
        image = partial(cell_image, rows, i, images[0], folder, allow_outside)
        return make_samples(benchmark, texts[i], f"{file.stem}-{i}", image, file)

    for i in range(len(rows)):
        yield f"{file.relative_to(folder)}, row {i}", partial(make, i)


def make_samples(benchmark: Benchmark, row: dict, name: str, image, file: Path) -> list[Sample]:
    """A row's samples with their image: most rows are one question, a referring row is one a sentence."""
    made = benchmark.make(row | {"split": file.stem.split("-")[0]})
    if not isinstance(made, list):
        return [replace(made, id=name, image=image)]
    samples = []
    for i, sample in enumerate(made):  # sentences about one object are not independent: they share a group
        meta = sample.meta | {"group": name}
        samples.append(replace(sample, id=f"{name}-{i}", image=image, meta=meta))
    return samples


def grade(name: str, trajectory, judge=None, protocol: str = "ours") -> dict:
    """The grade of an answer, as it goes into its record: `right` (is it correct?), `said` (what it chose:
    yes, no, or the letter of an option), and for grounding `box_iou`, the IoU of its box.

    name: of a benchmark; any other name stands for the plain rules. protocol: "ours", or "paper", in which a
    judge grades each answer that is not a lone letter.
    """
    if name not in BENCHMARKS:
        return plain_grade(trajectory, judge)
    benchmark = BENCHMARKS[name]
    sample = trajectory.sample
    if name in GROUNDING:
        return grade_box(trajectory)
    if judge and "asked" in sample.meta:
        judge = rephrased(judge, sample.meta["asked"])
    answer = trajectory.answer
    if not answer:
        return {"right": False, "said": None}
    read = benchmark.said or partial(chosen_by, gold=sample.answer, options=sample.options)
    by_letter = protocol == "paper" and name in LOOKING and sample.options
    is_right = right_as_paper if by_letter else benchmark.right
    return {"right": is_right(answer, sample, judge), "said": read(answer)}


def grade_box(trajectory) -> dict:
    if not trajectory.images:
        return {"right": False, "box_iou": 0.0, "said": None}
    sample = trajectory.sample
    frame = trajectory.frame or trajectory.images[0].size
    box = answer_box(trajectory.answer, frame, sample.open().size)
    overlap = iou(box, sample.boxes[0]) if box else 0.0
    return {"right": overlap >= 0.5, "box_iou": overlap, "said": box}


def rephrased(judge, question: str):
    """The judge, which is told this question and not the one that the model was asked."""
    return lambda _, gold, answer: judge(question, gold, answer)
