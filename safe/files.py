"""Files that a kill cannot spoil: .json is written whole, .jsonl is appended line by line."""

import json
import math
import os
import re
import sys
import tempfile
import zlib
from pathlib import Path


def fail(message: str, code: int = 2):
    """One clear line, and the end. Exit code 2: a mistake of the user, before anything long starts."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(code)


def read_json(file: Path) -> dict:
    """The content of a .json file; {} where there is none. Raises ValueError that names a broken file."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig")) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def write_json(file: Path, content) -> None:
    """Write a .json file."""
    text = json.dumps(strict(content), indent=1, allow_nan=False)
    write_whole(file, text + "\n")


def strict(content):
    """The same with None for what JSON has no word for.

    >>> strict({"loss": float("nan"), "boxes": [(1.0, float("inf"))]})
    {'loss': None, 'boxes': [[1.0, None]]}
    """
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    return content


def write_whole(file: Path, text: str) -> None:
    """Write a file at once or not at all: a kill in the middle must not cost what was there before. A link in
    its place is replaced, not followed."""
    number, half = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as half_written:
            half_written.write(text)
        os.chmod(half, 0o644)
        os.replace(half, file)
    except BaseException:
        Path(half).unlink(missing_ok=True)
        raise


def file_name(text: str) -> str:
    """A name for a file, another one for each text: what a file system may not take is replaced, and then a
    hash of the whole is added.

    >>> file_name("row-7"), file_name("a/b?") == file_name("a b!")
    ('row-7', False)
    """
    plain = re.sub(r"[^A-Za-z0-9-]", "-", text)[-80:]
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode()):08x}"


def append_rows(file: Path, *rows: dict) -> None:
    """Append lines to a .jsonl file in one write: a kill can cut them short, never garble earlier ones."""
    text = rows_text(rows)
    with file.open("a+b") as lines:
        end = lines.seek(0, 2)
        if end:  # after a line that a kill has cut short, begin a new one
            lines.seek(end - 1)
            text = text if lines.read() == b"\n" else "\n" + text
        lines.write(text.encode())


def rows_text(rows) -> str:
    lines = [json.dumps(strict(row), allow_nan=False) + "\n" for row in rows]
    return "".join(lines)


def split_rows(file: Path) -> tuple[list[dict], list[int]]:
    """The rows of a .jsonl file, and the numbers of the lines that are none."""
    rows = []
    bad = []
    if not file.exists():
        return rows, bad
    text = file.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(number)
    return rows, bad


def read_rows(file: Path) -> list[dict]:
    """The rows of a .jsonl file ([] where there is none); lines that are none are left out."""
    rows, _ = split_rows(file)
    return rows


def keep_rows(file: Path, wanted) -> list[dict]:
    """Rewrite a .jsonl file with only the rows for which `wanted(row)` holds; returns them.

    Where a line is no row, that is said, and the file as it was is kept beside it, as .bak.
    """
    rows, bad = split_rows(file)
    if bad:
        backup = file.with_name(file.name + ".bak")
        write_whole(backup, file.read_text(encoding="utf-8", errors="replace"))
        numbers = ", ".join(map(str, bad[:5]))
        print(
            f"{file}: line {numbers} can't be read and is left out; see {backup.name}",
            flush=True,
        )
    kept = [row for row in rows if wanted(row)]
    if file.exists():
        write_whole(file, rows_text(kept))
    return kept
