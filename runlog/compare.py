"""Several runs beside one another: those that differ in their seed alone are a group, and a row."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from safe.files import read_json

# Flags in which the runs of a group may differ: they change nothing in what is learned.
NO_MATTER = {"seed", "seeds", "out", "threads", "resume", "plan", "report_to"}
NO_MATTER |= {"eval_size", "save_every", "show_every", "guard", "merge"}
# What these flags were before they were there.
ADDED = {"tools": "zoom", "revision": ""}


def labels_of(runs: list[Path]) -> list[str]:
    """The shortest ends of their paths that tell runs apart.

    >>> labels_of([Path("runs/a/eval"), Path("runs/b/eval")]), labels_of([Path("/home/me/runs/a")])
    (['a/eval', 'b/eval'], ['a'])
    """
    for length in (1, 2, 3):
        labels = ["/".join(run.parts[-length:]) for run in runs]
        if len(set(labels)) == len(runs):
            return labels
    return [f"{label} ({number})" for number, label in enumerate(labels, 1)]


def same_but_seed(runs: list[Path]) -> dict[str, list[Path]]:
    """Runs by what distinguishes them: those that differ only in seed and folder share a line."""
    args = {}
    for run in runs:
        own = read_json(run / "args.json")
        args[run] = ADDED | own if own else {}
    labels = dict(zip(runs, labels_of(runs)))
    differ = []
    known = [set(own) for own in args.values() if own]
    shared = set.intersection(*known) if known else set()  # runs of before may lack a flag
    for key in sorted(shared - NO_MATTER):
        values = {json.dumps(own[key]) for own in args.values() if own}
        if len(values) > 1:
            differ.append(key)
    groups = defaultdict(list)
    for run, own in args.items():
        label = labels[run]  # of what is no run of train.py, such as a folder of eval.py
        if own and differ:
            label = ", ".join(f"{key} {own.get(key)}" for key in differ)
        elif own and len(runs) > 1:
            label = f"{own.get('model')} on {own.get('data')}"
        groups[label].append(run)
    return groups


def score_rows(runs: list[Path]) -> list[dict]:
    """A row for each group of runs and each arm: how many runs, and by kind of question the mean accuracy
    with the lowest and the highest.

    Runs without scores are left out. An arm counts in the runs that were asked in it.
    """
    rows = []
    for label, members in same_but_seed(runs).items():
        found = defaultdict(list)  # (when, arm) -> summaries by kind, a run each
        for run in members:
            for key, summaries in stored_arms(run).items():
                found[key].append(summaries)
        for (when, arm), parts in found.items():
            kinds = {}
            for kind in sorted(set().union(*parts)):
                kinds[kind] = spread(parts, kind)
            row = {"group": label, "runs": len(parts), "kinds": kinds}
            row["arm"] = f"{when}: {arm}" if when else arm
            rows.append(row)
    return rows


def stored_arms(run: Path) -> dict[tuple[str, str], dict]:
    """(when, arm) -> summaries by kind, as train.py or eval.py has stored them."""
    stored = read_json(run / "eval.json")
    found = {("", arm): kinds for arm, kinds in stored.get("arms", {}).items()}
    for when in ("before", "after"):
        for arm, kinds in stored.get(when, {}).items():
            found[when, arm] = kinds
    return found


def spread(parts: list[dict], kind: str) -> dict[str, float]:
    """Mean, lowest and highest accuracy over runs."""
    own = [part[kind] for part in parts if kind in part]
    right = [summary["accuracy"] for summary in own]
    return {
        "mean": fmean(right),
        "low": min(right),
        "high": max(right),
    }


def cell(found: dict[str, float], runs: int) -> str:
    """
    >>> cell({"mean": 0.9, "low": 0.85, "high": 0.95}, 3)
    '0.90 (0.85 to 0.95)'
    """
    text = f"{found['mean']:.2f}"
    return f"{text} ({found['low']:.2f} to {found['high']:.2f})" if runs > 1 else text


def scores_text(runs: list[Path]) -> str:
    """The table for people: a row for each group and arm."""
    rows = score_rows(runs)
    if not rows:
        return "none of these runs has scores"
    kinds = sorted(set().union(*(row["kinds"] for row in rows)))
    lines = []
    width = max(len(row["arm"]) for row in rows) + 2
    shown = None
    for row in rows:
        if row["group"] != shown:
            shown = row["group"]
            titles = "".join(f"{kind:>22}" for kind in kinds)
            lines.append(f"{shown}\n{'arm':<{width}}{'runs':>4}{titles}")
        line = f"{row['arm']:<{width}}{row['runs']:>4}"
        for kind in kinds:
            found = row["kinds"].get(kind)
            line += f"{cell(found, row['runs']) if found else '-':>22}"
        lines.append(line)
    lines.append("right, mean over runs (lowest to highest)")
    return "\n".join(lines)
