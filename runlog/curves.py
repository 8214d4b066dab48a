"""Curves over the steps: curves.png, what healthy looks like, and the small curves at the page's top."""

import math
from itertools import chain
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import NamedTuple

from runlog.compare import same_but_seed
from runlog.runs import run_args
from runlog.summary import RECENT, ends, from_to
from safe.files import read_rows

LEAST = 8  # trajectories; a mean over fewer is noise, and not drawn
ZOOM_GAIN = "acc_zoom - acc_no_zoom"  # computed from metrics.jsonl


class Panel(NamedTuple):
    keys: tuple[str, ...]  # of metrics.jsonl; where runs are compared, the first alone is drawn
    what: str
    healthy: str
    remedy: str

    @property
    def title(self) -> str:
        return f"{self.keys[0]}: {self.what}"


PANELS = (
    Panel(
        ("accuracy", "acc_zoom", "acc_no_zoom"), "fraction of correct answers", "Rises.",
        "Flat at chance: is the answer in the crop at all (oracle arm)? Else a larger --group.",
    ),
    Panel(
        ("tool_rate",), "fraction of trajectories that zoomed", "Rises and stays, where zooming is needed.",
        "Falls to 0: collapse. --bonus conditional, selected data; with a price a later --price_from.",
    ),
    Panel(
        ("calls", "delivered", "errors"), "tool calls per trajectory",
        "A few early on, then as many as needed.", "Keeps growing: a lower --max_turns, --bonus conditional.",
    ),
    Panel(
        ("iou",), "IoU of crops and their target", "Rises: it learns where, not only whether.",
        "Flat: boxes of any size are paid alike. A lower --crop_pixels.",
    ),
    Panel(
        ("reward", "reward_accuracy", "reward_format", "reward_tool", "reward_price", "reward_curiosity"),
        "mean over trajectories", "All rise together.",
        "reward_tool without reward_accuracy: an unearned bonus.",
    ),
    Panel(
        ("tokens",), "written by the model per trajectory", "Grows, then shrinks as it learns to aim.",
        "Runs away: a lower --max_turn_tokens.",
    ),
    Panel(
        ("dead_groups",), "fraction of groups without a gradient", "Rises as questions are solved.",
        "Near 1 early on: select_data.py, or a larger --group.",
    ),
    Panel(
        ("entropy",), "nats per token", "Falls slowly and stays above 0.",
        "Near 0: it has stopped exploring. A lower --lr, --lr_schedule linear.",
    ),
    Panel(
        ("logp_gap",), "sampler against trainer, largest, in nats",
        "Below 1e-3 in float32, below 1 in bfloat16.", "Grows: they are not the same policy.",
    ),
    Panel(
        (ZOOM_GAIN,), "what zooming seems to gain", "Above 0 where zooming helps.",
        "At 0: it zooms for show. A lower --look_pixels. Below 0, over a mix of kinds, can also mean"
        " restraint: it zooms on the hard questions alone.",
    ),
    Panel(
        ("sec_rollout", "sec_train"), "seconds per step", "Flat.",
        "Long rollouts: a larger --batch.",
    ),
)  # fmt: skip


# --------------------------------------------------------------------------------------------------
# curves.png.


def draw_curves(runs: list[Path], out: Path) -> None:
    """Write the panels of one run, or of several laid over one another, to a .png file."""
    from matplotlib.figure import Figure

    series_of = {run: series(run) for run in runs}
    groups = same_but_seed(runs)
    alone = len(groups) == 1
    # Fixed places: to find them (constrained_layout) takes as long as all the rest.
    places = {"left": 0.055, "right": 0.985, "bottom": 0.06, "top": 0.935, "hspace": 0.48, "wspace": 0.16}
    figure = Figure(figsize=(13, 12))
    axes = figure.subplots(4, 3, sharex=True, gridspec_kw=places)
    for axis, panel in zip(axes.flat, PANELS):
        for label, members in groups.items():
            rows = [series_of[run] for run in members]
            for key in panel.keys if alone else panel.keys[:1]:
                every = chain(*rows)
                known = [row[key] for row in every if row.get(key) is not None]  # older runs may lack it
                # A part that is 0 in every step says nothing; what the panel is about is drawn all the same.
                if any(known) or (known and key == panel.keys[0]):
                    draw_line(axis, rows, key, key if alone else label)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(fill(f"step.   Healthy: {panel.healthy}", 70), fontsize=8)
        axis.tick_params(labelbottom=True)
        axis.ticklabel_format(axis="y", scilimits=(-3, 5))  # 0.00015 would run into the next panel
        axis.grid(alpha=0.3)
        if alone and len(panel.keys) > 1 and axis.lines:
            axis.legend(fontsize=7, framealpha=0.5)
    corner = axes.flat[-1]  # the place that no panel needs
    corner.axis("off")
    if not alone:
        lines, labels = axes.flat[0].get_legend_handles_labels()
        corner.legend(lines, [fill(label, 56) for label in labels], loc="upper left", fontsize=8)
    bands = max(map(len, groups.values())) > 1
    seeds = "bands from the lowest to the highest seed" if bands else "thin lines are steps"
    notes = f"means over {RECENT} steps; {seeds}; without points of fewer than {LEAST} trajectories"
    figure.suptitle(f"{next(iter(groups))[:60]}: {notes}" if alone else notes, fontsize=11)
    figure.savefig(out, dpi=80)


def draw_line(axis, runs: list[list[dict]], key: str, label: str) -> None:
    """A metric over the steps: one run as a thin and a smooth line, several as their mean and a band. runs:
    the rows of each."""
    import numpy as np

    length = min(map(len, runs))
    steps = [row["step"] for row in runs[0][:length]]
    values = [smooth([row.get(key) for row in rows[:length]]) for rows in runs]
    values = np.array(values, dtype=float)  # (runs, steps)
    (line,) = axis.plot(steps, values.mean(0), label=label, zorder=3)  # above what comes behind it
    color = line.get_color()
    if len(runs) == 1:
        raw = np.array([row.get(key) for row in runs[0]], dtype=float)  # None becomes NaN
        axis.plot(steps, raw, ".-", color=color, alpha=0.25, linewidth=1, markersize=2)
    else:
        axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2)


def series(run: Path) -> list[dict]:
    """A run's rows of metrics.jsonl without means over very few trajectories, and with what zooming gains."""
    rows = read_rows(run / "metrics.jsonl")
    args = run_args(run)
    if "prompts" in args and "group" in args:
        rows = [without_thin_means(row, args["prompts"] * args["group"]) for row in rows]
    for row in rows:
        zoom = row.get("acc_zoom")
        no_zoom = row.get("acc_no_zoom")
        row[ZOOM_GAIN] = None if zoom is None or no_zoom is None else zoom - no_zoom
    return rows


def without_thin_means(row: dict, trajectories: int) -> dict:
    """A step's row without the means that rest on fewer than `LEAST` of its trajectories.

    How many zoomed is not stored, but follows from tool_rate (where some questions offer no zoom, that is an
    upper bound). iou is a mean over those that zoomed, or over fewer.

    >>> row = {"tool_rate": 127 / 128, "acc_zoom": 0.9, "acc_no_zoom": 0.0, "iou": 0.5}
    >>> without_thin_means(row, 128)["acc_no_zoom"], without_thin_means(row, 128)["acc_zoom"]
    (None, 0.9)
    """
    if row.get("tool_rate") is None:
        return row
    zoomed = round(row["tool_rate"] * trajectories)
    count = {"acc_zoom": zoomed, "iou": zoomed, "acc_no_zoom": trajectories - zoomed}
    return row | {key: None for key, number in count.items() if number < LEAST}


def smooth(values: list[float | None], window: int = RECENT) -> list[float]:
    """Trailing mean over the last `window` steps; steps without a value take no part, and get none.

    >>> smooth([1.0, None, 3.0, 5.0], window=3)
    [1.0, nan, 2.0, 4.0]
    """
    result = []
    for i, value in enumerate(values):
        recent = [v for v in values[max(0, i + 1 - window) : i + 1] if v is not None]
        result.append(float("nan") if value is None else fmean(recent))
    return result


# --------------------------------------------------------------------------------------------------
# The small curves of the page.


def small_curves(rows: list[dict]) -> list[dict]:
    """The curves at the page's top: each step as a thin line, the mean of the last few as a thick one."""
    titles = {panel.keys[0]: panel.title for panel in PANELS}
    curves = []
    for key in ("accuracy", "tool_rate", "iou"):
        both = ends(rows, key)
        if both is None:
            continue
        values = [row.get(key) for row in rows]
        text = "{:.2f} → {:.2f}".format(*both) if key == "iou" else from_to(*both)
        lines = {"thin": svg_path(values), "thick": svg_path(smooth(values))}
        curves.append({"key": key, "title": titles[key], "text": text} | lines)
    return curves


def svg_path(values: list[float | None]) -> str:
    """Fractions as an SVG path in a square of 100 by 100: from left to right, 1 at the top, gaps where there
    is no value. "h0" makes a dot of a point that stands alone.

    >>> svg_path([0.0, 0.5, None, 1.0])
    'M0,100h0L33.33,50M100,0h0'
    """
    path = ""
    inside = False
    for i, value in enumerate(values):
        known = value is not None and not math.isnan(value)
        if known:
            x = 100 * i / max(1, len(values) - 1)
            y = 100 * (1 - min(1.0, max(0.0, value)))
            point = f"{x:.4g},{y:.4g}"
            path += f"L{point}" if inside else f"M{point}h0"
        inside = known
    return path
