"""Runs of several seeds as one table, from the answers that each run has stored.

    python study.py runs/seed-0 runs/seed-1 runs/seed-2

Prints Markdown: before, the base forced to zoom, each run after training, and the mean with its 95 % interval
over seeds and questions (of a single run: over questions). No figure in it is typed by hand.
"""

import argparse
from pathlib import Path
from statistics import fmean

from knobs import Help, fail
from runs import read_rows
from stats import two_way_interval

# What a row of the table shows: label, kind of question, arm, and what is averaged.
RIGHT = [
    ("right on `read`", "read", "on", "right"),
    ("right on `compare`", "compare", "on", "right"),
    ("right on `glance`", "glance", "on", "right"),
    ("right on all", None, "on", "right"),
]
ZOOMS = [
    ("zooms on `read`", "read", "on", "zooms"),
    ("zooms on `compare`", "compare", "on", "zooms"),
    ("zooms on `glance`", "glance", "on", "zooms"),
]
AIM = [
    ("forced zooms on `read`: IoU with the tile", "read", "forced", "iou"),
    ("forced zooms on `read`: whole letter in the crop", "read", "forced", "holds"),
    ("forced zooms on `compare`: both letters in crops", "compare", "forced", "holds"),
]
CONTROLS = [
    ("a blank crop instead: `read`", "read", "blank", "right"),
    ("a blank crop instead: `compare`", "compare", "blank", "right"),
    ("a random crop instead: `read`", "read", "random", "right"),
    ("a random crop instead: `compare`", "compare", "random", "right"),
    ("another tile's crop instead: `read` right", "read", "swap", "right"),
    ("another tile's crop instead: says that tile's letter", "read", "swap", "says_shown"),
    ("a perfect crop instead: `read`", "read", "oracle", "right"),
    ("a perfect crop instead: `compare`", "compare", "oracle", "right"),
    ("no tool on offer: `read`", "read", "off", "right"),
    ("no tool on offer: `compare`", "compare", "off", "right"),
]


def answers_of(rows: list[dict], when: str, arm: str, kind: str | None) -> list[dict]:
    """The answers in an arm, in the order of the questions."""
    return [
        row
        for row in rows
        if (row["when"], row["arm"]) == (when, arm) and kind in (None, row["kind"])
    ]


def values(answers: list[dict], measure: str) -> dict[str, float]:
    """What is averaged, by question; answers without it (no crop: no IoU) are left out."""
    if measure == "zooms":
        return {row["id"]: float(bool(row["boxes"])) for row in answers}
    return {row["id"]: float(row[measure]) for row in answers if row[measure] is not None}


def mean_text(by_question: dict[str, float]) -> str:
    return f"{fmean(by_question.values()):.2f}" if by_question else "-"


def row_text(runs: list[list[dict]], line: tuple) -> str:
    """A line of the table."""
    label, kind, arm, measure = line
    base = runs[0]  # the same base, questions and greedy answers in every run
    cells = [label]
    cells.append(mean_text(values(answers_of(base, "before", arm, kind), measure)))
    forced = answers_of(base, "before", "forced", kind)
    cells.append(mean_text(values(forced, measure)) if arm == "on" else "")
    after = [values(answers_of(rows, "after", arm, kind), measure) for rows in runs]
    cells += map(mean_text, after)
    cells.append(interval_text(after))
    return "| " + " | ".join(cells) + " |"


def interval_text(after: list[dict[str, float]]) -> str:
    """The mean and its two-way interval, over the questions for which every run has a value."""
    questions = sorted(set.intersection(*map(set, after)))
    if not questions:
        return "-"
    rows = [[by_question[name] for name in questions] for by_question in after]
    low, high = two_way_interval(rows)
    return f"{fmean(map(fmean, rows)):.2f} ({low:.2f} to {high:.2f})"


def table(runs: list[list[dict]]) -> str:
    """The whole table. runs: for each seed the rows of its answers.jsonl."""
    seeds = [f"seed {number}" for number in range(len(runs))]
    titles = ["", "before", "before, forced", *seeds, "mean (95 %)"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += [row_text(runs, line) for line in RIGHT + ZOOMS + AIM + CONTROLS]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.error = fail
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of train.py, by seed")
    runs = []
    for folder in parser.parse_args().runs:
        file = folder / "answers.jsonl"
        if not file.is_file():
            fail(f"{folder} holds no answers.jsonl; give run folders of train.py")
        runs.append(read_rows(file))
    print(table(runs))


if __name__ == "__main__":
    main()
