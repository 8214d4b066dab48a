"""The fields of a row: question, answers, options and boxes, in the shapes that people give them.

What is unmistakable is read. Anything else raises ValueError, so that the row is named and left out.
"""

import ast
import json
import re
from string import ascii_uppercase as LETTERS

from grading.boxes import Box
from loading.files import short

MARK = "<image>"
# Keys of other layouts that would change what is asked. Their frames and forms are not known.
OTHER_KEYS = {
    **dict.fromkeys(("box", "bbox", "bboxes", "bbox_2d"), "boxes"),
    **dict.fromkeys(("choices", "candidates"), "options"),
}
LONGEST_LIST = 10_000  # characters of a list that is written as text
LETTERED = re.compile(r"\s*[(\[（]?([A-Za-z])[)\].:）．：、]+\s*(?=\S)")
LIST_AS_TEXT = re.compile(r"\s*\[\s*(['\"]).*\1\s*\]\s*", re.S)


def check_keys(row: dict) -> None:
    """Raise ValueError for a key that would change what is asked, if it were read."""
    for key, ours in OTHER_KEYS.items():
        if row.get(key) not in (None, [], "") and row.get(ours) in (None, []):
            raise ValueError(f"the key {key!r} is not read: it is called {ours!r} here (docs/data.md)")


def read_question(text) -> str:
    """The question without the mark of its image. Raises ValueError for what is no text, and for marks of
    several images.

    >>> read_question("<image>\\nWhich?")
    'Which?'
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no question, or one that is no text: {short(text)}")
    if text.count(MARK) > 1:
        raise ValueError(f"{text.count(MARK)} marks {MARK}; a question has one image")
    return text.replace(MARK, "").strip() if MARK in text else text


def read_answers(answer) -> tuple[str, ...]:
    """A row's answer, or its list of accepted answers, the gold first. Numbers become texts; true is yes.

    >>> read_answers("red"), read_answers(["nokia", "Nokia 3310"]), read_answers(3), read_answers(True)
    (('red',), ('nokia', 'Nokia 3310'), ('3',), ('yes', 'true'))
    """
    if isinstance(answer, bool):
        return ("yes", "true") if answer else ("no", "false")
    if isinstance(answer, str) and LIST_AS_TEXT.fullmatch(answer):
        answer = parse_list(answer, "answers")
    if isinstance(answer, list):
        if not answer:
            raise ValueError("the list of answers is empty")
        return tuple(read_text(each, "answer") for each in answer)
    return (read_text(answer, "answer"),)


def read_text(value, name: str) -> str:
    """A text, or a number as text. Raises ValueError for anything else. name: of the field."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and value - value == 0:  # not NaN, not infinite
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: no text and no number: {short(value)}")
    return value


def read_options(value) -> tuple[str, ...]:
    """The options: a list of texts or numbers, {"A": ..., "B": ...}, or either of them written as text.
    Letters of their own are taken off.

    >>> read_options(["A) red", "B) blue"]), read_options({"A": "red", "B": "blue"})
    (('red', 'blue'), ('red', 'blue'))
    >>> read_options("['1', '2']")
    ('1', '2')
    """
    if value is None or value == [] or value == "":
        return ()
    if isinstance(value, str):
        value = parse_list(value, "options")
    if isinstance(value, dict):
        value = lettered_values(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"options are a list of texts, not {short(value)}")
    options = tuple(read_text(option, "options") for option in value)
    marks = [LETTERED.match(option) for option in options]
    own = "".join(mark[1].upper() if mark else "-" for mark in marks)
    if own == LETTERS[: len(options)] and len(options) > 1:
        return tuple(option[mark.end() :].strip() for option, mark in zip(options, marks))
    if len(options) > 1 and "-" not in own and len(set(own)) == len(own):
        raise ValueError(f"the options have letters of their own, {', '.join(own)}, not A, B, C ... in order")
    return options


def parse_list(text: str, name: str):
    """A list or an object that is written as text, as JSON or as Python prints it. name: of the field.

    >>> parse_list("['red', 'blue']", "options")
    ['red', 'blue']
    """
    for parse in (json.loads, ast.literal_eval) if len(text) <= LONGEST_LIST else ():
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise ValueError(f"{name} are a list of texts, not {short(text)}")


def lettered_values(options: dict) -> list:
    """The values of {"A": ..., "B": ...}. Those at the end may be None: a table has one column for all rows.

    >>> lettered_values({"B": "blue", "A": "red", "C": None})
    ['red', 'blue']
    """
    by_letter = {str(key).upper(): value for key, value in options.items()}
    letters = "".join(sorted(by_letter))
    if letters != LETTERS[: len(letters)] or len(by_letter) < len(options):
        raise ValueError(f"the options' letters are not A, B, C ...: {short(list(options))}")
    values = [by_letter[letter] for letter in letters]
    while values and values[-1] is None:
        values.pop()
    return values


def read_boxes(value) -> tuple[Box, ...]:
    """The target boxes: a list of [x1, y1, x2, y2], one of them alone, or {"bbox_2d": [...]}, also as text.

    They are in pixels of the original, so a box within 0 and 1 is refused.

    >>> read_boxes([1, 2, 30, 40]), read_boxes([{"bbox_2d": [1, 2, 30, 40], "label": "cup"}])
    (((1.0, 2.0, 30.0, 40.0),), ((1.0, 2.0, 30.0, 40.0),))
    """
    if value is None or value == [] or value == "":
        return ()
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, dict) or (isinstance(value, list) and all(map(is_number, value))):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"boxes are a list of [x1, y1, x2, y2], not {short(value)}")
    return tuple(map(read_box, value))


def read_box(value) -> Box:
    if isinstance(value, dict) and "bbox_2d" in value:
        value = value["bbox_2d"]
    elif isinstance(value, dict) and {"x1", "y1", "x2", "y2"} <= set(value):
        value = [value[name] for name in ("x1", "y1", "x2", "y2")]
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(map(is_number, value)):
        raise ValueError(f"not a box of four numbers: {short(value)}")
    box = tuple(map(float, value))
    if max(box) <= 1:
        raise ValueError(f"the box {box} lies within 0 and 1: boxes are in pixels of the original")
    return box


def read_sized_boxes(value) -> tuple[Box, ...]:
    """Target boxes of files that have x, y, width, height.

    >>> read_sized_boxes([[10, 20, 30, 40]])
    ((10.0, 20.0, 40.0, 60.0),)
    """
    return tuple((x, y, x + width, y + height) for x, y, width, height in read_boxes(value))


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
