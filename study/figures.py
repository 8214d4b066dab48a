"""The figures of the study: seeds as dots."""

from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from textwrap import shorten

from matplotlib.figure import Figure

from study.arms import EDGES, SIZES, of_size
from study.stored import Stored, mean_known
from toy.world import LETTERS

LINES = {  # of the curve of letter sizes
    "base": ("tab:grey", "before"),
    "paid": ("tab:orange", "the paper's bonus"),
    "unpriced": ("tab:green", "no bonus, no price"),  # drawn wide: the next lies on it
    "priced": ("tab:blue", "a price on crops of correct answers"),
}
TRAINED_ON = ((36, 40), (190, 210))  # px, heights of letters
COLOURS = {"supported": "tab:green", "refuted": "tab:red", "undecided": "tab:grey"}  # of a claim's seeds


def draw_claims(found: list, file: Path) -> None:
    """All findings that have been judged, two panels abreast: their rows, a dot for each seed."""
    judged = [(number, finding) for number, finding in enumerate(found, 1) if finding.dots]
    pairs = list(zip_longest(judged[::2], judged[1::2]))
    heights = [1 + max(len(panel[1].dots) for panel in pair if panel) for pair in pairs]
    figure = Figure((14, 0.24 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(pairs), 2, squeeze=False, height_ratios=heights)
    for axis, panel in zip(axes.flat, chain(*pairs)):
        if panel:
            draw_claim(axis, *panel)
        else:
            axis.set_visible(False)
    figure.savefig(file, dpi=90)


def draw_claim(axis, number: int, finding) -> None:
    """A panel: fractions as dots, a line for each row of the claim."""
    colour = COLOURS[finding.word]
    dots = []
    for label, values in finding.dots:
        if all(value <= 1 for value in values):  # numbers of steps would not fit on an axis of fractions
            dots.append((label, values))
    for y, (_, values) in enumerate(dots):
        axis.scatter(values, [y] * len(values), color=colour, s=22, alpha=0.6)
    labels = [shorten(label.replace("`", ""), 60, placeholder=" ...") for label, _ in dots]
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -0.05), max(high, 1.05))
    axis.tick_params("x", labelsize=7)
    axis.grid(alpha=0.3)
    title = f"{number}. {finding.claim}: {finding.word}".replace("*", "")
    axis.set_title(title, fontsize=8, loc="right", color=colour)


def draw_all(found: list, sizes: Stored, edge: Stored, folder: Path) -> list[str]:
    """Draw what there are scores for; returns the names of the files. sizes, edge: the runs of a base."""
    drawn = []
    if any(finding.dots for finding in found):
        draw_claims(found, folder / "study.png")
        drawn.append("study.png")
    if sizes.runs("base"):
        draw_sizes(sizes, folder / "when_not.png")
        drawn.append("when_not.png")
    if edge.runs("no bonus, 3136"):
        draw_edge(edge, folder / "knife_edge.png")
        drawn.append("knife_edge.png")
    return drawn


def draw_sizes(stored: Stored, file: Path) -> None:
    """Size of the letters against `tool_rate`, and against accuracy."""
    figure = Figure((11, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    zooming, reading = axes
    for arm in LINES:
        draw_line(zooming, stored, arm, "zooms")
        draw_line(reading, stored, arm, "right")
    zooming.set_title("tool_rate", fontsize=11)
    reading.set_title("accuracy", fontsize=11)
    if stored.runs("priced"):
        line = by_size(stored, "priced", "off", "right")
        means = list(map(fmean, line))
        reading.plot(SIZES, means, "--", color="tab:blue", label="priced, no tool on offer")
    chance = 1 / len(LETTERS)
    reading.axhline(chance, color="black", linewidth=0.8, linestyle=":")
    for axis in axes:
        for low, high in TRAINED_ON:
            axis.axvspan(low, high, color="tab:green", alpha=0.15, linewidth=0)
        finish(axis, "height of the letter, px of the image (green: trained on)")
    figure.savefig(file, dpi=90)


def finish(axis, xlabel: str) -> None:
    """What all panels have in common: fractions from 0 to 1."""
    axis.set_xlabel(xlabel)
    axis.set_ylim(-0.05, 1.05)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def draw_line(axis, stored: Stored, arm: str, measure: str) -> None:
    """An arm's curve over the sizes, its seeds as dots."""
    if not stored.runs(arm):
        return
    colour, label = LINES[arm]
    by_seed = by_size(stored, arm, "on", measure)
    means = list(map(fmean, by_seed))
    width = 5 if arm == "unpriced" else 1.5
    axis.plot(SIZES, means, color=colour, label=label, linewidth=width)
    for size, values in zip(SIZES, by_seed):
        draw_seeds(axis, size, values, colour)


def draw_seeds(axis, x: float, values: list[float], colour: str, label=None) -> None:
    """A dot for each seed."""
    axis.scatter([x] * len(values), values, color=colour, label=label, s=16, alpha=0.6)


def by_size(
    stored: Stored,
    arm: str,
    way: str,
    measure: str,
) -> list[list[float]]:
    """For each size of letters a fraction for each seed. way: the arm of eval.py."""
    found = []
    for size in SIZES:
        asked = f"{of_size(size)} | {way}"
        found.append(stored.seed_means(arm, asked, measure))
    return found


def draw_edge(stored: Stored, file: Path) -> None:
    """Crop pixels against `tool_rate`, and against accuracy on `read`, by bonus."""
    figure = Figure((10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = {
        "tool_rate": "tool_rate",
        "accuracy_read": "accuracy on `read`",
    }
    colours = {"bonus": "tab:orange", "no bonus": "tab:blue"}
    for axis, (key, title) in zip(axes, titles.items()):
        for arm, colour in colours.items():
            for pixels in (*EDGES, 12544):
                values = edge_values(stored, arm, pixels, key)
                label = arm if pixels == EDGES[0] else None
                draw_seeds(axis, pixels, values, colour, label)
        axis.set_title(f"{title}, steps 31 to 40", fontsize=11)
        finish(axis, "pixels of a crop")
    figure.savefig(file, dpi=90)


def edge_values(
    stored: Stored,
    arm: str,
    pixels: int,
    key: str,
) -> list[float]:
    """Means of a metric over steps 31 to 40, of each seed. arm: its name at the default crop size."""
    name = f"{arm}, {pixels}" if pixels in EDGES else arm
    found = []
    for row in stored.metric(name, key):
        found.append(mean_known(row[30:40]))
    return found
