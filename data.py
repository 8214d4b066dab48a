"""`Sample`, and the loaders of every data set.

A loader yields a row as a pair: where the row stands, and a function that makes its sample. So `collect` can
name a row that is broken, and go on with the next one.
"""

import base64
import io
import json
import math
import os
import random
import stat
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import datasets
from huggingface_hub import snapshot_download, try_to_load_from_cache
from PIL import Image, ImageOps

from config import DATASETS
from grading.boxes import Box
from grading.golds import read_gold
from toy.world import draw_questions

# Scans and panoramas have 200 megapixels; Pillow's own limit, for decompression bombs, is lower.
MOST_PIXELS = 300_000_000
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
# A batch does not keep larger images; they are opened again when they are needed.
LARGE_PIXELS = 50_000_000
# The usual formats. Pillow knows forty more, and starts Ghostscript for one of them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MOST_OPTIONS = 26
MOST_LETTERS = 8000  # of a question
MOST_NAME = 200


@dataclass(frozen=True)
class Sample:
    """One question about one image."""

    id: str
    # A path, encoded bytes, an image, or a function that returns one; decoded or drawn only by open().
    image: str | bytes | Image.Image | Callable[[], Image.Image]
    question: str  # without options and without prompt boiler-plate
    answer: str  # gold: text, the correct option's text, a number ...
    options: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()  # target boxes x1, y1, x2, y2 in ORIGINAL pixels
    source: str = "toy"
    tool: bool = True  # False: a single turn without the zoom prompt (ThinkLite rows)
    meta: dict = field(default_factory=dict)
    wording: tuple[str, str] | None = None  # of tools.prompt; None: ours
    accepted: tuple[str, ...] = ()  # further answers that are as good as the gold
    drawn: bool = False  # by the toy, when it is opened, so the image can always be read

    def open(self) -> Image.Image:
        """The image: RGB, upright (EXIF orientation applied). Raises ValueError that names the sample."""
        try:
            image = self.stored()
            check_size(image)
            # 16 bits a pixel: a plain conversion would clip the values to white.
            if image.mode.startswith("I"):
                image = image.convert("I").point(lambda v: v / 256).convert("L")
            upright = ImageOps.exif_transpose(image)
            check_boxes(upright, self.boxes)
            return upright.convert("RGB")
        # PIL raises half a dozen kinds; which one does not matter to the user.
        except Exception as error:
            raise ValueError(
                f"sample {self.id}: its image can't be read ({type(error).__name__}: {error})"
            ) from error

    def stored(self) -> Image.Image:
        """The image as it is stored: not decoded yet, but its size is known."""
        image = self.image() if callable(self.image) else self.image
        return image if isinstance(image, Image.Image) else open_image(image)

    def text(self) -> str:
        """The question as the model gets it: options, if any, on lettered lines.

        >>> print(Sample("1", b"", "Which?", "a dog", options=("a cat", "a dog")).text())
        Which?
        A. a cat
        B. a dog
        """
        lettered = (f"{chr(65 + i)}. {option}" for i, option in enumerate(self.options))
        return "\n".join([self.question, *lettered])


def open_image(source: str | Path | bytes) -> Image.Image:
    """The image in a file or in its bytes, not decoded yet. Raises ValueError or OSError for other files."""
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=FORMATS)
    if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait for ever
        raise ValueError(f"{source} is no regular file")
    return Image.open(source, formats=FORMATS)


def check_size(image: Image.Image) -> None:
    """Raise ValueError for an image too large to decode. Its size is known without decoding."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}")


def check_boxes(image: Image.Image, boxes) -> None:
    """Raise ValueError for a target box, in pixels of this image, that lies wholly outside it."""
    width, height = image.size
    for box in boxes:
        left, top, right, bottom = box
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            raise ValueError(f"the box {box} lies outside its {width} x {height} pixels")


DEEPEYES = "ChenShawn/DeepEyes-Datasets-47k"
DEEPEYES_GB = 4.84  # three parquet files
SEAL = "craigwu/seal_vqa_data"
SEAL_FILES = ("GQA_data", "llava_focus_data", "spatial_relation_data", "vaw_attribute_data")
TEST_EVERY = 20  # one row in this many is held out of training
FIELDS = ("id", "question", "source", "tool", "meta")  # of a row in a user's folder


def load(
    name: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    root: str | None = None,
    revision: str | None = None,
    allow_outside: bool = False,
) -> list[Sample]:
    """The samples of a data set; images are read when they are opened.

    name: "toy", "toy-mixture" (or a variant, see toy/variants.py), "deepeyes" (47k rows of the paper), "seal"
    (V* with target boxes), or a folder with .jsonl files, or parquet files of select_data.py. split:
    "train", "test", or None for all (toy: train); for files, every 20th row by a hash of its id is
    "test". limit: how many, picked by the seed (the toy has no end: default 1,000). root: the folder of
    "deepeyes" (else from the Hub) or of "seal" (with its .json files and images). revision: a commit on
    the Hub. allow_outside: rows of a folder may name images outside it. Bad rows are left out, counted,
    and named in runs/bad-rows-NAME.jsonl. Raises ValueError for a data set that can't be read at all.
    """
    if split not in (None, "train", "test"):
        raise ValueError(f"data set {name!r} has the splits 'train' and 'test', not {split!r}")
    toy, _, variant = name.partition(":")
    if toy in ("toy", "toy-mixture"):
        count = 1000 if limit is None else limit
        mixture = toy == "toy-mixture"
        rows = draw_questions(count, seed=seed, split=split or "train", mixture=mixture, variant=variant)
        return [Sample(drawn=True, source=toy, **row) for row in rows]
    if name == "deepeyes":
        rows = deepeyes(find_folder(root, DEEPEYES, revision=revision))
    elif name == "seal":
        if root is None:
            raise ValueError(
                f"seal needs --root: a folder with the .json files of {SEAL}, and the images of COCO and"
                " GQA that they name, which the Hub does not hold"
            )
        rows = seal(find_folder(root, SEAL))
    elif Path(name).is_dir():
        rows = folder_rows(Path(name), allow_outside)
    else:
        raise ValueError(f"unknown data set {name!r}: neither one of {', '.join(DATASETS)} nor a folder")
    kept = list(map(with_options, collect(rows, name)))
    if split:
        kept = of_split(kept, split)
    if not kept:
        part = f"its {split} part (--eval_size 0 needs no test part)"
        raise ValueError(f"data set {name!r} has no usable row in {part}")
    if limit is not None:
        kept = random.Random(seed).sample(kept, min(limit, len(kept)))
    return kept


def of_split(samples: list[Sample], split: str) -> list[Sample]:
    """The samples of "train" or "test": as rows say themselves (meta's split), or by a hash of their ids."""
    said = [sample.meta.get("split") for sample in samples]
    if "train" in said or "test" in said:
        held_out = [each == "test" for each in said]
    else:
        held_out = [zlib.crc32(sample.id.encode()) % TEST_EVERY == 0 for sample in samples]
    return [sample for sample, held in zip(samples, held_out) if held == (split == "test")]


def with_options(sample: Sample) -> Sample:
    """The sample with the choices of its question's text as options, and its gold as one of them.

    >>> sample = with_options(Sample("1", b"", "Which country?\\n(A) Malta\\n(B) Cyprus", "B"))
    >>> sample.question, sample.answer, sample.options
    ('Which country?', 'Cyprus', ('Malta', 'Cyprus'))
    """
    question, answer, options = read_gold(sample.question, sample.answer, sample.options)
    others = (read_gold(question, other, options)[1] for other in sample.accepted)
    accepted = tuple(dict.fromkeys(other for other in others if other != answer))
    return replace(sample, question=question, answer=answer, options=options, accepted=accepted)


# What a bad row raises, among others for a file name of 300 characters (OSError), a number of 400 digits
# (OverflowError) and brackets that are nested a thousand times (RecursionError).
BAD_ROW = (ValueError, LookupError, TypeError, AttributeError, StopIteration)
BAD_ROW += (OSError, OverflowError, RecursionError)


def collect(rows, name: str) -> list[Sample]:
    """The samples of a loader's rows; bad rows are left out, and named in a file.

    rows: (where, function that makes one sample or a list of them).
    """
    kept = []
    bad = []
    for where, make in rows:
        try:
            made = make()
            made = made if isinstance(made, list) else [made]
            for sample in made:
                check(sample)
            kept += made
        except BAD_ROW as error:
            kind = "lacks" if isinstance(error, KeyError) else f"{type(error).__name__}:"
            bad.append({"row": where, "reason": f"{kind} {error}"})
    report = Path("runs") / f"bad-rows-{Path(name).name}.jsonl"
    if bad:
        report.parent.mkdir(exist_ok=True)
        report.write_text("".join(json.dumps(row) + "\n" for row in bad))
        print(f"{name}: {len(bad)} bad rows left out, named in {report}; {len(kept)} kept")
    if not kept:
        why = f": {bad[0]['reason']} in {bad[0]['row']} (all are in {report})" if bad else ""
        raise ValueError(f"data set {name!r} has no usable row{why}")
    return kept


def opened(sample: Sample) -> Sample | None:
    """The sample with its image opened. If the image can't be read, that is printed, and the result is None.

    A large image is opened again when it is needed: a batch of large images would not fit in memory.
    """
    try:
        image = sample.open()
        if image.width * image.height > LARGE_PIXELS:
            return sample
        return replace(sample, image=image)
    except ValueError as error:
        print(f"left out: {error}", flush=True)


def readable(samples: list[Sample]) -> list[Sample]:
    """The samples whose images can be read. The images stay closed."""
    return [sample for sample in samples if sample.drawn or opened(sample)]


def check(sample: Sample) -> None:
    """Raise ValueError for a sample that can't be asked or scored."""
    texts = [("question", sample.question), ("answer", sample.answer)]
    texts += [("answer", other) for other in sample.accepted]
    for name, value in texts:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"no {name}, or one that is no text")
    for name in ("id", "source"):
        value = getattr(sample, name)
        if not isinstance(value, str) or not 0 < len(value) <= MOST_NAME:
            raise ValueError(f"{name} is no text of up to {MOST_NAME} characters")
    if not isinstance(sample.tool, bool):
        raise ValueError(f"tool is {sample.tool!r}, neither true nor false")
    if not isinstance(sample.meta, dict):
        raise ValueError("meta is no object")
    for name in ("kind", "group"):
        value = sample.meta.get(name)
        if value is not None and not isinstance(value, str | int):
            raise ValueError(f"meta's {name} is no text")
    if len(sample.options) > MOST_OPTIONS:
        raise ValueError(f"{len(sample.options)} options; at most {MOST_OPTIONS} have letters")
    question = sample.text()
    for text in (question, sample.answer, *sample.accepted, sample.id, sample.source):
        text.encode()  # raises UnicodeEncodeError for half of a surrogate pair
    if len(question) > MOST_LETTERS:
        raise ValueError(f"the question has {len(question)} characters, of {MOST_LETTERS} at most")
    if "<|" in question:  # the tokenizer would read a special token, such as that of an image
        raise ValueError("the question holds special tokens")
    for box in sample.boxes:
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise ValueError(f"not a box of four numbers: {box}")
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"not a box x1, y1, x2, y2: {box}")


def is_cached(repository: str, kind: str, file: str) -> bool:
    """Is this file of a repository ("model" or "dataset") in the Hub's cache?"""
    found = try_to_load_from_cache(repository, file, repo_type=kind)
    return isinstance(found, str)


USED = {}  # repositories of this process's data -> the commit that was used


def find_folder(
    root: str | None,
    repository: str,
    only: list[str] | None = None,
    revision: str | None = None,
) -> Path:
    """The folder `root`, or without one the Hub's copy of the data set, whose commit is noted in `USED`.

    only: patterns of the files that are needed. revision: a commit; without one, the newest.
    """
    if root is not None:
        if not Path(root).is_dir():
            raise ValueError(f"no such folder: {root}")
        return Path(root)
    if not is_cached(repository, "dataset", "README.md"):
        size = f" ({DEEPEYES_GB} GB)" if repository == DEEPEYES else ""
        print(f"fetching {repository}{size} into the Hub's cache", flush=True)
    wanted = {"repo_type": "dataset", "allow_patterns": only, "revision": revision or None}
    try:
        folder = Path(snapshot_download(repository, **wanted))
    except Exception as error:
        raise ValueError(
            f"{repository} is not on this machine and can't be fetched here ({type(error).__name__}); "
            f"where there is a connection: hf download --repo-type dataset {repository}"
        ) from error
    USED[repository] = folder.name
    return folder


def parquet(file: Path, columns: tuple[str, ...]):
    """A parquet file, memory-mapped; ValueError that names the file if it is broken or lacks a column."""
    datasets.disable_progress_bars()
    try:
        rows = datasets.Dataset.from_parquet(str(file))
    except Exception as error:
        raise ValueError(f"{file} can't be read as parquet ({type(error).__name__})") from error
    if missing := [column for column in columns if column not in rows.column_names]:
        raise ValueError(f"{file} lacks the columns {', '.join(missing)}")
    return rows


def cell_image(
    rows,
    number: int,
    column: str,
    folder: Path | None = None,
    allow_outside: bool = True,
):
    """The (first) image of a parquet row. Data sets keep images as struct, bytes, base64 text, or path."""
    cell = rows.select_columns([column])[number][column]
    cell = cell[0] if isinstance(cell, list) else cell
    if isinstance(cell, dict):
        cell = cell["bytes"] or cell["path"]
    if isinstance(cell, str):
        if "." not in cell:  # a path has a suffix, base64 no dot
            return open_image(base64.b64decode(cell))
        return open_image(inside(Path(folder or "."), cell, allow_outside))
    return open_image(cell) if isinstance(cell, bytes) else cell


def deepeyes(folder: Path):
    """Rows of the paper's training files (verl's layout)."""
    files = sorted(folder.glob("**/*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no parquet files")
    for file in files:
        rows = parquet(file, ("prompt", "images", "reward_model", "extra_info", "data_source"))
        texts = rows.select_columns(["prompt", "reward_model", "data_source"])
        for number in range(len(rows)):
            image = partial(cell_image, rows, number, "images")
            make = partial(deepeyes_sample, texts, number, image, f"{file.stem}-{number}")
            yield f"{file.name}, row {number}", make


def deepeyes_sample(texts, number: int, image, name: str) -> Sample:
    """A row as a sample; the prompt is stripped to the plain question."""
    row = texts[number]
    question = next(turn["content"] for turn in row["prompt"] if turn["role"] == "user")
    tool = row["data_source"] != "thinklite_eureka"
    golds = golds_of(row["reward_model"]["ground_truth"])
    question = question.replace("<image>", "")
    question = question.split("\nThink first")[0] if tool else question.split("Question:")[-1]
    return Sample(
        id=name,
        image=image,
        question=question.strip().removeprefix("Question:").strip(),
        answer=golds[0],
        accepted=golds[1:],
        source=row["data_source"],
        tool=tool,
        meta={"kind": row["data_source"]},  # tables and metrics by source
    )


def seal(folder: Path):
    """Rows of the four files of V*'s training data that have target boxes."""
    files = [folder / f"{name}.json" for name in SEAL_FILES]
    if missing := [file.name for file in files if not file.exists()]:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    for file in files:
        try:
            rows = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        for number, row in enumerate(rows):
            yield f"{file.name}, row {number}", partial(seal_sample, folder, row, f"{file.stem}-{number}")


def seal_sample(folder: Path, row: dict, name: str) -> Sample:
    """A row as a sample; its boxes are x, y, width, height, original pixels."""
    question = row["conversations"][0]["value"].split("<object>.\n")[-1].replace("<image>", "").strip()
    corners = [target["bbox"] for target in row["target_instances"]]
    image = folder / row["image"]
    if not image.exists():
        raise ValueError(f"no image {image}")
    return Sample(
        id=name,
        image=str(image),
        question=question,
        answer=row["conversations"][1]["value"],
        boxes=tuple((x, y, x + width, y + height) for x, y, width, height in corners),
        source="vstar",
    )


def inside(folder: Path, name: str, allow_outside: bool) -> str:
    """The path of a data set's image. Raises ValueError for one that leads out of the data set's folder: rows
    of a stranger could name any file, which would end up in a page that is shared."""
    image = folder / name
    if not image.exists():
        raise ValueError(f"no image {image}")
    if not allow_outside and not image.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside the folder: --allow_outside, if you trust these rows")
    return str(image)


def folder_rows(folder: Path, allow_outside: bool = False):
    """Rows of a user's folder: .jsonl lines, or the parquet files that select_data.py writes.

    A line: {"image": "a.jpg", "question": "...", "answer": "..."}, and if wanted "options" (a list), "boxes"
    (a list of [x1, y1, x2, y2] in original pixels), "id", "source", "tool" (false: no zoom), "meta",
    "split" ("test" is held out of training; without any, one row in 20 is). An answer may be a list: the
    gold, then others that are as good; select_data.py writes these others as "accepted". Images lie inside
    the folder, unless allow_outside.
    """
    lines = sorted(folder.glob("*.jsonl"))
    tables = sorted(folder.glob("selected*.parquet"))
    if not lines and not tables:
        raise ValueError(f"{folder} holds neither .jsonl files nor a selected.parquet")
    for file in tables:
        rows = parquet(file, ("image", "question", "answer"))
        texts = rows.remove_columns("image")
        for number in range(len(rows)):
            image = partial(cell_image, rows, number, "image", folder, allow_outside)
            yield f"{file.name}, row {number}", partial(table_sample, texts, number, image)
    for file in lines if not tables else ():
        for number, line in enumerate(file.read_text().split("\n")):
            if line.strip():
                make = partial(line_sample, folder, line, f"{file.stem}-{number}", allow_outside)
                yield f"{file.name}, line {number + 1}", make


def table_sample(texts, number: int, image) -> Sample:
    return folder_sample(texts[number], image, str(number))


def line_sample(folder: Path, line: str, name: str, allow_outside: bool) -> Sample:
    row = json.loads(line)
    row = {"source": folder.resolve().name} | row
    return folder_sample(row, inside(folder, row["image"], allow_outside), name)


def folder_sample(row: dict, image, name: str) -> Sample:
    """A row of a user's folder as a sample. name: its id, if the row has none."""
    values = {key: row[key] for key in FIELDS if row.get(key) is not None}
    if missing := [key for key in ("question", "answer") if row.get(key) is None]:
        raise ValueError(f"lacks {', '.join(missing)}")
    golds = golds_of(row["answer"])
    accepted = row.get("accepted") or []
    if not isinstance(accepted, list):
        raise ValueError("accepted is no list")
    if type(values.get("id")) is int:
        values["id"] = str(values["id"])
    if isinstance(values.get("meta"), str):
        values["meta"] = json.loads(values["meta"])
    if row.get("split") is not None:
        if row["split"] not in ("train", "test"):
            raise ValueError(f"split is {row['split']!r}, neither train nor test")
        values["meta"] = values.get("meta", {}) | {"split": row["split"]}
    options = tuple(map(str, row.get("options") or ()))
    boxes = tuple(tuple(map(float, box)) for box in row.get("boxes") or ())
    values |= {"answer": golds[0], "accepted": golds[1:] + tuple(accepted)}
    return Sample(**{"id": name} | values, image=image, options=options, boxes=boxes)


def golds_of(answer) -> tuple:
    """A row's answer, or its list of accepted answers, the gold first.

    >>> golds_of("red"), golds_of(["nokia", "Nokia 3310"])
    (('red',), ('nokia', 'Nokia 3310'))
    """
    golds = tuple(answer) if isinstance(answer, list) else (answer,)
    if not golds:
        raise ValueError("the list of answers is empty")
    return golds


def mix(samples: list[Sample], ratio: str, seed: int = 0) -> list[Sample]:
    """The largest set of samples whose sources are in this ratio, in random order.

    >>> toys = [Sample(str(i), b"", "?", "A", source="ab"[i % 3 > 0]) for i in range(30)]
    >>> "".join(sorted(s.source for s in mix(toys, "a:1,b:1")))
    'aaaaaaaaaabbbbbbbbbb'
    """
    try:
        pairs = [part.split(":") for part in ratio.split(",")]
        weights = {name: float(weight) for name, weight in pairs}
    except ValueError:
        raise ValueError(f"a ratio between sources looks like vstar:47,chart:30, not {ratio!r}") from None
    by_source = defaultdict(list)
    for sample in samples:
        by_source[sample.source].append(sample)
    if unknown := set(weights) - set(by_source):
        raise ValueError(f"no samples of source {', '.join(sorted(unknown))}, only of {', '.join(by_source)}")
    scale = min(len(by_source[name]) / weight for name, weight in weights.items() if weight)
    rng = random.Random(seed)
    mixed = []
    for name, weight in weights.items():
        mixed += rng.sample(by_source[name], int(scale * weight))
    rng.shuffle(mixed)
    return mixed
