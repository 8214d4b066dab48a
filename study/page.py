"""docs/study.md: tables, verdicts and pictures from the stored scores, and what claims.toml says of them."""

from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median

from jinja2 import Environment, FileSystemLoader

from evaluation.stats import holm
from study.arms import ARMS, AS_TINY, EDGES, PLAIN
from study.figures import LINES, draw_all, edge_values
from study.runs import SELECT, TRAIN
from study.stored import Stored, by_base, with_arms
from study.verdicts import findings


def write_page(lines: list[dict], folder: Path) -> Path:
    """Write study.md and its figures into a folder; returns the page. lines: of study.jsonl."""
    stores = by_base(lines)
    found = findings(stores)
    sizes_base, sizes = first_with(stores, ("base", *LINES))
    edge_base, edge = first_with(stores, ("base", "no bonus, 3136"))
    tested = [finding for finding in found if finding.p]
    corrected = holm([finding.p[0] for finding in tested])
    for finding, after_holm in zip(tested, corrected):
        p, floor = finding.p
        finding.effect += f"; p {p:.3g} (floor {floor:.3g}, after Holm {after_holm:.2g})"
    trained = [line for line in lines if "metrics" in line]
    arms = arm_rows(Stored(lines))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=False)
    environment.filters["seed"] = seed_text
    environment.filters["mean"] = mean_text
    text = environment.get_template("page.jinja").render(
        found=found,
        bases=list(stores),
        runs=len(trained),
        hours=sum(row["minutes"] * row["runs"] for row in arms) / 60,
        figures=draw_all(found, sizes, edge, folder),
        sizes_base=sizes_base,
        edge_base=edge_base,
        edge=edge_rows(edge),
        arms=arms,
        train=TRAIN,
        as_tiny=AS_TINY,
        select=SELECT,
    )
    page = folder / "study.md"
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    return page


def first_with(stores: dict[str, Stored], arms) -> tuple[str, Stored]:
    """The first base that has all these arms, else the first one, and its runs."""
    return next(iter([*with_arms(stores, arms).items(), *stores.items()]), ("", Stored([])))


def seed_text(value: float) -> str:
    """
    >>> seed_text(0.5), seed_text(12)
    ('0.50', '12')
    """
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def mean_text(values: list[float]) -> str:
    """Of counts with one decimal, of fractions with three."""
    digits = 1 if isinstance(values[0], int) else 3
    return f"{fmean(values):.{digits}f}"


def edge_rows(stored: Stored) -> list[dict]:
    """What the figure of the knife edge shows, in numbers."""
    rows = []
    for pixels in (*EDGES, 12544):
        cells = []
        for key in ("tool_rate", "accuracy_read"):
            cells += [edge_values(stored, arm, pixels, key) for arm in ("bonus", "no bonus")]
        base = f"base, {pixels}" if pixels in EDGES else "base"
        forced = stored.seed_means(base, f"{PLAIN} | forced", "right", "read")
        rows.append({"pixels": pixels, "cells": [forced, *cells]})
    return rows


def arm_rows(stored: Stored) -> list[dict]:
    rows = []
    for arm in ARMS:
        seconds = [run["seconds"] for run in stored.runs(arm.name)]
        minutes = median(seconds) / 60 if seconds else 0  # a run may have slept
        flags = arm.flags.format(folder="FOLDER").replace(AS_TINY, "AS_TINY")
        row = {"flags": flags, "runs": len(seconds), "minutes": minutes}
        rows.append(asdict(arm) | row)
    return rows
