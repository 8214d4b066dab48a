"""Runs of several seeds as one table, from the answers that each run has stored.

Markdown: before, the base forced to zoom, each run after training, and the mean with its 95 % interval
over seeds and questions (of a single run: over questions). No figure in it is typed by hand.
"""

from statistics import fmean

from evaluation.stats import two_way_interval
from runlog.tables import table as as_table

# What a row of the table shows: label, kind of question, arm, and what is averaged.
LINES = [
    ("accuracy on `read`", "read", "on", "right"),
    ("accuracy on `compare`", "compare", "on", "right"),
    ("accuracy on `glance`", "glance", "on", "right"),
    ("accuracy on all", None, "on", "right"),
    ("`tool_rate` on `read`", "read", "on", "zooms"),
    ("`tool_rate` on `compare`", "compare", "on", "zooms"),
    ("`tool_rate` on `glance`", "glance", "on", "zooms"),
    ("forced zooms on `read`: IoU with the tile", "read", "forced", "iou"),
    ("forced zooms on `read`: whole letter in the crop", "read", "forced", "holds"),
    ("forced zooms on `compare`: both letters in crops", "compare", "forced", "holds"),
    ("a blank crop instead: `read`", "read", "blank", "right"),
    ("a blank crop instead: `compare`", "compare", "blank", "right"),
    ("a random crop instead: `read`", "read", "random", "right"),
    ("a random crop instead: `compare`", "compare", "random", "right"),
    ("another tile's crop instead: accuracy on `read`", "read", "swap", "right"),
    ("another tile's crop instead: says that tile's letter", "read", "swap", "says_shown"),
    ("a perfect crop instead: `read`", "read", "oracle", "right"),
    ("a perfect crop instead: `compare`", "compare", "oracle", "right"),
    ("no tool on offer: `read`", "read", "off", "right"),
    ("no tool on offer: `compare`", "compare", "off", "right"),
]


def answers_of(rows: list[dict], when: str, arm: str, kind: str | None) -> list[dict]:
    """The answers in an arm, in the order of the questions."""
    found = []
    for row in rows:
        asked = (row["when"], row["arm"])
        if asked == (when, arm) and kind in (None, row["kind"]):
            found.append(row)
    return found


def values(answers: list[dict], measure: str) -> dict[str, float]:
    """What is averaged, by question; answers without it (no crop: no IoU) are left out."""
    by_question = {}
    for row in answers:
        value = bool(row["boxes"]) if measure == "zooms" else row[measure]
        if value is not None:
            by_question[row["id"]] = float(value)
    return by_question


def mean_of_questions(by_question: dict[str, float]) -> str:
    return f"{fmean(by_question.values()):.2f}" if by_question else "-"


def row_cells(runs: list[list[dict]], line: tuple) -> list[str]:
    """A line of the table."""
    label, kind, arm, measure = line
    base = runs[0]  # the same base, questions and greedy answers in every run
    before = answers_of(base, "before", arm, kind)
    before = values(before, measure)
    forced = answers_of(base, "before", "forced", kind)
    forced = values(forced, measure)
    after = []
    for rows in runs:
        answers = answers_of(rows, "after", arm, kind)
        after.append(values(answers, measure))
    cells = [label, mean_of_questions(before)]
    cells.append(mean_of_questions(forced) if arm == "on" else "")
    return [*cells, *map(mean_of_questions, after), interval_text(after)]


def interval_text(after: list[dict[str, float]]) -> str:
    """The mean and its two-way interval, over the questions for which every run has a value."""
    questions = sorted(set.intersection(*map(set, after)))
    if not questions:
        return "-"
    rows = [[by_question[name] for name in questions] for by_question in after]
    low, high = two_way_interval(rows)
    return f"{fmean(map(fmean, rows)):.2f} ({low:.2f} to {high:.2f})"


def table(runs: list[list[dict]], names: list[str]) -> str:
    """The whole table. runs: for each seed the rows of its answers.jsonl. names: of their columns."""
    titles = ["accuracy or fraction", "before", "before, forced", *names, "mean (95 %)"]
    rows = [row_cells(runs, line) for line in LINES]
    return as_table([titles, *rows], markdown=True)
