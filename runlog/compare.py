"""Several runs in one table: those that differ in their seed alone are a group, and share a row."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from config import GONE, TrainConfig
from runlog.runs import run_args
from runlog.tables import table
from safe.files import read_json

# Flags in which the runs of a group may differ: they change nothing in what is learned.
NO_MATTER = {"seed", "seeds", "out", "threads", "resume", "plan", "report_to"}
NO_MATTER |= {"eval_size", "save_every", "show_every", "guard", "merge"}
USUAL = GONE | asdict(TrainConfig())


def scores_text(runs: list[Path]) -> str:
    """The scores of runs as text: a table for each group of runs, with a row for each arm."""
    titles, groups = comparison(runs)
    if not groups:
        return "none of these runs has scores"
    tables = [f"{group}\n{table([titles, *rows])}" for group, rows in groups.items()]
    return "\n".join([*tables, "accuracy, mean over runs (lowest to highest)"])


def comparison(runs: list[Path]) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Titles, and for each group of runs its rows of cells: arm, number of runs, and by kind of question the
    mean accuracy with the lowest and the highest.

    Runs without scores are left out. An arm counts in the runs that were asked in it.
    """
    asked = defaultdict(list)  # (group, arm) -> summaries by kind, one of each run
    for group, members in same_but_seed(runs).items():
        for run in members:
            for arm, summaries in stored_arms(run).items():
                asked[group, arm].append(summaries)
    kinds = sorted({kind for found in asked.values() for summaries in found for kind in summaries})
    groups = defaultdict(list)
    for (group, arm), found in asked.items():
        groups[group].append([arm, str(len(found)), *(spread_text(found, kind) for kind in kinds)])
    return ["arm", "runs", *kinds], groups


def same_but_seed(runs: list[Path]) -> dict[str, list[Path]]:
    """Runs by what distinguishes them: those that differ only in seed and folder share a label.

    A flag that an older run lacks has its usual value: nobody could set it.
    """
    args_of = {run: USUAL | args for run in runs if (args := run_args(run))}
    differing = []
    for key in sorted(set().union(*args_of.values()) - NO_MATTER):
        values = {json.dumps(args.get(key)) for args in args_of.values()}
        if len(values) > 1:
            differing.append(key)
    groups = defaultdict(list)
    for run, label in zip(runs, labels_of(runs)):
        args = args_of.get(run)  # None where it is no run of train.py, such as a folder of eval.py
        if args and differing:
            label = ", ".join(f"{key} {args.get(key)}" for key in differing)
        elif args and len(runs) > 1:
            label = f"{args['model']} on {args['data']}"
        groups[label].append(run)
    return groups


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


def stored_arms(run: Path) -> dict[str, dict]:
    """Arm -> summaries by kind, as train.py ("before: on", "after: on", ...) or eval.py has stored them."""
    stored = read_json(run / "eval.json")
    found = dict(stored.get("arms", {}))
    for when in ("before", "after"):
        for arm, summaries in stored.get(when, {}).items():
            found[f"{when}: {arm}"] = summaries
    return found


def spread_text(runs: list[dict], kind: str) -> str:
    """Mean, lowest and highest accuracy of a kind of question. runs: the summaries by kind, one of each.

    >>> two = [{"read": {"accuracy": 0.85}}, {"read": {"accuracy": 0.95}}]
    >>> spread_text(two, "read"), spread_text(two, "glance")
    ('0.90 (0.85 to 0.95)', '-')
    """
    known = [summaries[kind]["accuracy"] for summaries in runs if kind in summaries]
    if not known:
        return "-"
    text = f"{fmean(known):.2f}"
    return f"{text} ({min(known):.2f} to {max(known):.2f})" if len(runs) > 1 else text
