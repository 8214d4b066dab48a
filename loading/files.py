"""Files of rows: text, JSON lines, parquet, and the images that a row names or holds."""

import base64
import codecs
import csv
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import pyarrow

from safe.files import read_json

LONGEST_NAME = 255  # characters of a file's name; of a longer text in base64 no file is looked for
BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")


def json_rows(file: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 0 on, JSON) of each row: the lines of a .jsonl file, or the elements of one array.

    Byte-order marks and UTF-16 are read. Raises ValueError that names the file if it is no text.
    """
    text = file.read_bytes()
    try:
        if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = text.decode("utf-16").encode()
        text = text.removeprefix(codecs.BOM_UTF8)
        if b"\0" in text:
            raise ValueError("it holds bytes of value 0")
        stripped = text.strip()
        is_array = stripped.startswith(b"[") and stripped.endswith(b"]")
        rows = json.loads(text) if is_array else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no UTF-8 text with a JSON row on each line ({error})") from error
    if isinstance(rows, list):
        yield from ((number, json.dumps(row).encode()) for number, row in enumerate(rows))
        return
    for number, line in enumerate(text.split(b"\n")):
        if line.strip():
            yield number, line


def read_row(line: bytes) -> dict:
    """The row of a line. Raises ValueError for bytes that are no UTF-8, and for what is no object."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise ValueError(f"byte {byte:#x} at {error.start} is not UTF-8: save the file as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("brackets in brackets, too many to read") from error
    if not isinstance(row, dict):
        raise ValueError(f'a row is an object such as {{"image": ...}}, not {short(row)}')
    return row


def short(value) -> str:
    """A value for an error message.

    >>> short("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def need_columns(columns, known, file: Path) -> None:
    """Raise ValueError that names the file if it lacks a column."""
    if missing := [column for column in columns if column not in known]:
        raise ValueError(f"{file} lacks the columns {', '.join(missing)}")


def parquet(file: Path, columns: tuple[str, ...]) -> datasets.Dataset:
    """A parquet file, memory-mapped; ValueError that names the file if it is broken or lacks a column."""
    datasets.disable_progress_bars()
    try:
        rows = datasets.Dataset.from_parquet(str(file))
    except Exception as error:
        raise ValueError(f"{file} can't be read as parquet ({type(error).__name__})") from error
    need_columns(columns, rows.column_names, file)
    return rows


def tsv(file: Path, columns: tuple[str, ...]) -> datasets.Dataset:
    """Tab-separated rows as text, memory-mapped in the cache of `datasets`: images in base64 make them large.
    ValueError that names the file if it is broken or lacks a column."""
    datasets.disable_progress_bars()
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            names = next(csv.reader(opened, delimiter="\t"), [])
        as_text = datasets.Features(dict.fromkeys(names, datasets.Value("string")))
        # Without keep_default_na=False an option that reads "None" would be missing
        rows = datasets.Dataset.from_csv(
            str(file), features=as_text, sep="\t", keep_default_na=False, chunksize=32
        )
    except Exception as error:
        raise ValueError(f"{file} can't be read as tab-separated rows ({type(error).__name__})") from error
    need_columns(columns, rows.column_names, file)
    return rows


def listed_rows(file: Path, columns: tuple[str, ...], make, allow_outside: bool = False):
    """(where, function that makes the sample) for the rows of VisualProbe's files: a list of objects, whose
    `images` hold a path. make: row -> sample without id and image."""
    if not file.is_file():
        raise ValueError(f"{file.parent} holds no {file.name}, the file of VisualProbe")
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} holds no list of rows")
    need_columns((*columns, "images"), set().union(*rows), file)

    def finish(number: int, row: dict):
        image = read_image(row["images"], file.parent, allow_outside)
        return replace(make(row), id=str(row.get("doc_id", number)), image=image)

    for number, row in enumerate(rows):
        yield f"{file.name}, row {number}", partial(finish, number, row)


def check_one_image(rows: datasets.Dataset, number: int, column: str) -> None:
    """Raise ValueError for a cell that is a list of no image or of several. The images stay unread."""
    cell = rows.data.column(column)[number]
    if isinstance(cell, pyarrow.ListScalar | pyarrow.LargeListScalar):
        count = len(cell) if cell.is_valid else 0
        if count != 1:
            raise ValueError(f"{count} images; a question has one")


def cell_image(
    rows: datasets.Dataset,
    number: int,
    column: str,
    folder: Path,
    allow_outside: bool = False,
) -> str | bytes:
    """The image of a parquet row, as a path or its bytes. folder: of the file, where paths begin."""
    # As the file has it: the library itself would open any image that a cell names.
    cell = rows.data.column(column)[number].as_py()
    return read_image(cell, folder, allow_outside)


def read_image(cell, folder: Path, allow_outside: bool = False) -> str | bytes:
    """A row's image as a path or its bytes. Data sets keep images as a struct, bytes, base64 text, data URI,
    or path. Raises ValueError for anything else, for several images, and for a path outside the folder."""
    if isinstance(cell, list):
        if len(cell) != 1:
            raise ValueError(f"{len(cell)} images; a question has one")
        cell = cell[0]
    if isinstance(cell, dict):
        held = cell.get("bytes")
        if isinstance(held, str):
            return base64.b64decode(held, validate=True)
        cell = held or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        raise ValueError(f"an image is a path, bytes, base64 or a data URI, not {short(cell)}")
    head, comma, data = cell[:100].partition(";base64,")
    if comma and head.startswith("data:"):
        return base64.b64decode(cell[len(head + comma) :], validate=True)
    if cell.startswith(("http://", "https://")):
        raise ValueError(f"{short(cell)} is not fetched: download the image into the folder")
    if BASE64.fullmatch(cell) and (len(cell) > LONGEST_NAME or not find_file(folder, cell)):
        return base64.b64decode(cell)
    return inside(folder, cell, allow_outside)


def find_file(folder: Path, name: str) -> Path | None:
    """The file of this name, whose letters may be composed (as most systems write é) or decomposed (as macOS
    does), and whose folders may be separated as on Windows."""
    forms = (name, composed(name), unicodedata.normalize("NFD", name))
    for form in (*forms, name.replace("\\", "/")):
        if (folder / form).exists():
            return folder / form
    return None


def composed(name: str) -> str:
    """A name whose letters are composed: é as one character."""
    return unicodedata.normalize("NFC", name)


def inside(folder: Path, name: str, allow_outside: bool = False) -> str:
    """The path of an image that a row names. Raises ValueError for one that leads out of the data set's
    folder: rows of a stranger could name any file, which would end up in a page that is shared."""
    image = find_file(folder, name)
    if image is None:
        raise ValueError(f"no image {short(str(folder / name))}")
    place = image.resolve()
    if not allow_outside and not any(map(place.is_relative_to, roots(folder.resolve()))):
        raise ValueError(f"{name} lies outside the folder: --allow_outside, if you trust these rows")
    return str(image)


def roots(folder: Path) -> list[Path]:
    """Where the files of a data set's folder may lie: in it, or, of a snapshot in the Hub's cache, whose
    files are links, among the blobs of the same repository."""
    found = [folder]
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots":
            found += [place, place.parent.parent / "blobs"]
    return found
