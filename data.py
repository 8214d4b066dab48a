"""`Sample`, and the loaders of every data set.

A loader yields a row as a pair: where the row stands, and a function that makes its sample. So `collect` can
name a row that is broken, and go on with the next one.
"""

import json
import math
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from PIL import Image

from config import DATASETS
from grading.boxes import Box
from grading.golds import read_gold
from loading.fields import (
    check_keys,
    read_answers,
    read_boxes,
    read_options,
    read_question,
    read_sized_boxes,
    read_text,
)
from loading.files import (
    cell_image,
    check_one_image,
    inside,
    json_rows,
    listed_rows,
    parquet,
    read_image,
    read_row,
    short,
)
from loading.images import check_boxes, check_size, open_image, to_rgb
from toy.world import draw_questions

# A batch does not keep larger images; they are opened again when they are needed.
LARGE_PIXELS = 50_000_000
MOST_OPTIONS = 26
MOST_LETTERS = 8000  # of a question
MOST_NAME = 200


@dataclass(frozen=True)
class Sample:
    """One question about one image."""

    id: str
    # A path, encoded bytes, an image, or a function that returns one of these; read only by open().
    image: str | bytes | Image.Image | Callable[[], str | bytes | Image.Image]
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
            image = to_rgb(image)
        # PIL raises half a dozen kinds; which one does not matter to the user.
        except Exception as error:
            raise ValueError(
                f"sample {self.id}: its image can't be read ({type(error).__name__}: {error})"
            ) from error
        try:
            check_boxes(image.size, self.boxes)
        except ValueError as error:
            raise ValueError(f"sample {self.id}: {error}") from error
        return image

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


NO_PART = {
    "train": "no usable row to train on: all of them say that they are held out",
    "test": 'no usable row in its held-out part: give some rows "split": "test", or ask all with eval.py'
    " --split all, or train with --eval_size 0",
}
DEEPEYES = "ChenShawn/DeepEyes-Datasets-47k"
VISUALPROBE = "Mini-o3/VisualProbe_train"
ON_THE_HUB = {"deepeyes": DEEPEYES, "visualprobe": VISUALPROBE}
GIGABYTES = {DEEPEYES: 4.84, VISUALPROBE: 12.6}
VISUALPROBE_COLUMNS = ("problem", "solution", "data_source")
SEAL = "craigwu/seal_vqa_data"
SEAL_FILES = ("GQA_data", "llava_focus_data", "spatial_relation_data", "vaw_attribute_data")
TEST_EVERY = 20  # one row in this many is held out of training
# The keys of a row in a user's folder.
KEYS = ("image", "images", "question", "answer", "accepted", "options", "boxes")
KEYS += ("id", "source", "tool", "meta", "split")
# A token that the tokenizer would read as one, such as <|image_pad|>; "x<|y|>3" is none.
SPECIAL = re.compile(r"<\|(?:[a-z]+(?:_[a-z]+)+|endoftext)\|>")


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

    name: "toy", "toy-mixture" (or a variant, see toy/variants.py), "deepeyes" (47k rows of the paper),
    "visualprobe" (Mini-o3's large photographs, with short answers), "seal" (V* with target boxes), or a
    folder with .jsonl files, or parquet files of select_data.py. split: "train", "test", or None for all
    (toy: train); for files, every 20th row by a hash of its id is "test". limit: how many, picked by the seed
    (the toy has no end: default 1,000). root: the folder of "deepeyes" or "visualprobe" (else from the Hub)
    or of "seal" (with its .json files and images). revision: a commit on the Hub. allow_outside: rows of a
    folder may name images outside it. Bad rows are left out, counted, and named in runs/bad-rows-NAME.jsonl.
    Raises ValueError for a data set that can't be read at all.
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
        rows = deepeyes(find_folder(root, DEEPEYES, revision=revision), allow_outside)
    elif name == "seal":
        if not root:
            raise ValueError(
                f"seal needs --root: a folder with the .json files of {SEAL}, and the images of COCO and"
                " GQA that they name, which the Hub does not hold"
            )
        rows = seal(find_folder(root, SEAL), allow_outside)
    elif name == "visualprobe":
        folder = find_folder(root, VISUALPROBE, revision=revision)
        rows = listed_rows(folder / "train.json", VISUALPROBE_COLUMNS, visualprobe_sample, allow_outside)
    elif Path(name).is_dir():
        rows = folder_rows(Path(name), allow_outside)
    else:
        raise ValueError(f"unknown data set {name!r}: neither one of {', '.join(DATASETS)} nor a folder")
    kept = collect(((where, partial(finished, make)) for where, make in rows), name)
    if split:
        kept = of_split(kept, split)
    if not kept:
        raise ValueError(f"data set {name!r} has {NO_PART[split]}")
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


def finished(make: Callable) -> Sample:
    """A loader's sample, checked, with the choices of its text as options."""
    sample = make()
    check(sample)
    return with_options(sample)


def with_options(sample: Sample) -> Sample:
    """The sample with the choices of its question's text as options, and its gold as one of them. Raises
    ValueError for a gold that is not on offer.

    >>> sample = with_options(Sample("1", b"", "Which country?\\n(A) Malta\\n(B) Cyprus", "B"))
    >>> sample.question, sample.answer, sample.options
    ('Which country?', 'Cyprus', ('Malta', 'Cyprus'))
    """
    question, answer, options = read_gold(sample.question, sample.answer, sample.options)
    others = (read_gold(question, other, options)[1] for other in sample.accepted)
    accepted = tuple(dict.fromkeys(other for other in others if other != answer))
    if options and (unknown := set((answer, *accepted)) - set(options)):
        raise ValueError(f"the answer {short(min(unknown))} is none of the options")
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
            bad.append({"row": where, "reason": reason_of(error)})
    report = Path("runs") / f"bad-rows-{Path(name).resolve().name}.jsonl"
    if bad:
        report.parent.mkdir(exist_ok=True)
        report.write_text("".join(json.dumps(row) + "\n" for row in bad))
        print(f"{name}: {len(bad)} bad rows left out, named in {report}; {len(kept)} kept")
    if not kept:
        why = f": {bad[0]['reason']} in {bad[0]['row']} (all are in {report})" if bad else ""
        raise ValueError(f"data set {name!r} has no usable row{why}")
    own = with_own_ids(kept)
    if renamed := [after.id for before, after in zip(kept, own) if before.id != after.id]:
        print(f"{name}: {len(renamed)} rows share an id with an earlier row; they get ids of their own")
    return own


def reason_of(error: Exception) -> str:
    """Why a row is bad, for the one who wrote it.

    >>> reason_of(KeyError("image")), reason_of(ValueError("no image a.png"))
    ("lacks 'image'", 'no image a.png')
    """
    if isinstance(error, UnicodeEncodeError):
        return f"holds half of a character ({error.reason})"
    if isinstance(error, KeyError):
        return f"lacks {error}"
    if isinstance(error, ValueError | OSError):
        return str(error)
    return f"has not the form that docs/data.md shows ({type(error).__name__}: {error})"


def with_own_ids(samples: list[Sample]) -> list[Sample]:
    """The samples, no two of one id: answers are stored by ids, so one would overwrite another's.

    >>> [sample.id for sample in with_own_ids([Sample(name, b"", "?", "A") for name in ("a", "b", "a", "a")])]
    ['a', 'b', 'a#2', 'a#3']
    """
    taken = {sample.id for sample in samples}
    count = Counter()
    own = []
    for sample in samples:
        name = sample.id
        count[name] += 1
        if count[name] > 1:
            name = f"{name}#{count[name]}"
            while name in taken:
                name += "#"
            taken.add(name)
        own.append(sample if name == sample.id else replace(sample, id=name))
    return own


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
            raise ValueError(f"no {name}, or one that is no text: {short(value)}")
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
    if SPECIAL.search(question):
        raise ValueError("the question holds special tokens")
    for box in sample.boxes:
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise ValueError(f"not a box of four numbers: {box}")
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"not a box x1, y1, x2, y2 with x1 < x2 and y1 < y2: {box}")


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
    if root:
        if not Path(root).is_dir():
            raise ValueError(f"no such folder: {root}")
        return Path(root)
    if not is_cached(repository, "dataset", "README.md"):
        size = f" ({GIGABYTES[repository]} GB)" if repository in GIGABYTES else ""
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


def used_revision(name: str, asked: str) -> str:
    """The commit of the Hub's copy that a data set was read from; for a folder, what was asked for."""
    return USED.get(ON_THE_HUB.get(name), asked)


def visualprobe_sample(row: dict) -> Sample:
    """A row of VisualProbe, of its training or its test files; id and image are filled in later."""
    text = read_question(row["problem"])
    meta = {"kind": read_text(row["data_source"], "data_source")}
    return Sample("", b"", text, read_text(row["solution"], "solution"), source="visualprobe", meta=meta)


def deepeyes(folder: Path, allow_outside: bool = False):
    """Rows of the paper's training files (verl's layout)."""
    files = sorted(folder.glob("**/*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no parquet files")
    for file in files:
        rows = parquet(file, ("prompt", "images", "reward_model", "extra_info", "data_source"))
        texts = rows.select_columns(["prompt", "reward_model", "data_source"])
        for number in range(len(rows)):
            image = partial(cell_image, rows, number, "images", file.parent, allow_outside)
            check_image = partial(check_one_image, rows, number, "images")
            make = partial(deepeyes_sample, texts, number, check_image, image, f"{file.stem}-{number}")
            yield f"{file.relative_to(folder)}, row {number}", make


def deepeyes_sample(texts, number: int, check_image: Callable, image: Callable, name: str) -> Sample:
    """A row as a sample; the prompt is stripped to the plain question."""
    check_image()
    row = texts[number]
    asked = next(turn["content"] for turn in row["prompt"] if turn["role"] == "user")
    tool = row["data_source"] != "thinklite_eureka"
    golds = read_answers(row["reward_model"]["ground_truth"])
    question = read_question(asked)
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


def seal(folder: Path, allow_outside: bool = False):
    """Rows of the four files of V*'s training data that have target boxes."""
    files = [folder / f"{name}.json" for name in SEAL_FILES]
    if missing := [file.name for file in files if not file.exists()]:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    for file in files:
        try:
            rows = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        for number, row in enumerate(rows):
            make = partial(seal_sample, folder, row, f"{file.stem}-{number}", allow_outside)
            yield f"{file.name}, row {number}", make


def seal_sample(folder: Path, row: dict, name: str, allow_outside: bool) -> Sample:
    """A row as a sample; its boxes are x, y, width, height, original pixels."""
    question = read_question(row["conversations"][0]["value"]).split("<object>.\n")[-1].strip()
    return Sample(
        id=name,
        image=inside(folder, row["image"], allow_outside),
        question=question,
        answer=row["conversations"][1]["value"],
        boxes=read_sized_boxes([target["bbox"] for target in row["target_instances"]]),
        source="vstar",
    )


def folder_rows(folder: Path, allow_outside: bool = False):
    """Rows of a user's folder: .jsonl lines, or the parquet files that select_data.py writes.

    A line: {"image": "a.jpg", "question": "...", "answer": "..."}, and if wanted "options" (a list), "boxes"
    (a list of [x1, y1, x2, y2] in original pixels), "id", "source", "tool" (false: no zoom), "meta",
    "split" ("test" is held out of training; without any, one row in 20 is). An answer may be a list: the
    gold, then others that are as good; select_data.py writes these others as "accepted". Images lie inside
    the folder, unless allow_outside. docs/data.md has all shapes that are read.
    """
    lines = sorted(folder.glob("*.jsonl"))
    tables = sorted(folder.glob("selected*.parquet"))
    if not lines and not tables:
        others = [file.name for file in folder.glob("*.json") if file.name != "args.json"]
        rename = f" (are its rows in {others[0]}? Rename it to .jsonl)" if others else ""
        raise ValueError(f"{folder} holds neither .jsonl files nor a selected.parquet{rename}")
    for file in tables:
        rows = parquet(file, ("image", "question", "answer"))
        texts = rows.remove_columns("image")
        for number in range(len(rows)):
            image = partial(cell_image, rows, number, "image", folder, allow_outside)
            yield f"{file.name}, row {number}", partial(table_sample, texts, number, image)
    unread = Counter()
    for file in lines if not tables else ():
        for number, line in json_rows(file):
            make = partial(line_sample, folder, line, f"{file.stem}-{number}", allow_outside, unread)
            yield f"{file.name}, line {number + 1}", make
    if unread:
        keys = (f"{short(key)} in {count} rows" for key, count in unread.most_common(5))
        print(f"{folder}: keys that nothing reads: {', '.join(keys)}")


def table_sample(texts, number: int, image: Callable) -> Sample:
    return folder_sample(texts[number], image, str(number))


def line_sample(folder: Path, line: bytes, name: str, allow_outside: bool, unread: Counter) -> Sample:
    row = read_row(line)
    check_keys(row)
    unread.update(key for key in row if key not in KEYS)
    if row.get("source") is None:
        row["source"] = folder.resolve().name
    given = [row[key] for key in ("image", "images") if row.get(key) is not None]
    if len(given) != 1:
        raise ValueError("lacks image" if not given else "image and images: a question has one image")
    return folder_sample(row, read_image(given[0], folder, allow_outside), name)


def folder_sample(row: dict, image, name: str) -> Sample:
    """A row of a user's folder as a sample. name: its id, if the row has none."""
    if missing := [key for key in ("question", "answer") if row.get(key) is None]:
        raise ValueError(f"lacks {', '.join(missing)}")
    values = {key: row[key] for key in ("source", "tool") if row.get(key) is not None}
    options = read_options(row.get("options"))
    golds = read_answers(row["answer"])
    if isinstance(row["answer"], bool) and options:  # yes or true, whichever is on offer
        golds = tuple(gold for gold in golds if gold in map(str.lower, options)) or golds
    accepted = [] if row.get("accepted") is None else row["accepted"]
    if not isinstance(accepted, list):
        raise ValueError("accepted is no list")
    return Sample(
        id=name if row.get("id") is None else read_id(row["id"]),
        image=image,
        question=read_question(row["question"]),
        answer=golds[0],
        accepted=golds[1:] + tuple(read_text(other, "accepted") for other in accepted),
        options=options,
        boxes=read_boxes(row.get("boxes")),
        meta=read_meta(row),
        **values,
    )


def read_id(value) -> str:
    return str(value) if type(value) is int else value


def read_meta(row: dict) -> dict:
    """A row's meta, an object or its JSON, with the split that the row gives."""
    meta = {} if row.get("meta") is None else row["meta"]
    meta = json.loads(meta) if isinstance(meta, str) else meta
    if not isinstance(meta, dict):
        raise ValueError(f"meta is no object: {short(meta)}")
    split = row.get("split")
    if split is None:
        return meta
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, neither train nor test")
    return meta | {"split": split}


def fingerprint(samples: list[Sample]) -> str:
    """A hash of all that is asked and graded: it tells whether the rows have changed since. Of images it
    knows the sizes, if they are files.

    >>> fingerprint([Sample("1", b"", "?", "A")]) == fingerprint([Sample("1", b"", "?", "B")])
    False
    """
    parts = []
    for sample in samples:
        size = Path(sample.image).stat().st_size if isinstance(sample.image, str) else 0
        parts.append((sample.id, sample.text(), sample.answer, sample.boxes, sample.accepted, size))
    return f"{zlib.crc32(repr(parts).encode()):08x}"


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
