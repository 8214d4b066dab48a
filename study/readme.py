"""The figures of README.md and docs/results.md anew: runs of `python train.py` as it comes, and all that is
written and drawn from them.

    python -m study.readme                    # eight seeds: half an hour; a stopped one goes on
    python -m study.readme --seeds 0,1,2      # others

No figure between the marks `<!-- NAME -->` and `<!-- end -->` of these pages is typed by hand.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

from PIL import Image

from config import Help, run_command
from runlog.curves import draw_curves
from runlog.summary import asked_again
from runlog.tables import table as as_table
from safe.files import fail, read_json, read_rows, write_whole
from study.seeds import answers_of, row_cells, table, values

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RUNS = "runs/readme"  # what the runs' names begin with
# Rows of the README's table: label, kind of question, arm, measure. A forced arm is forced before, too.
ROWS = [
    ("all", None, "on", "right"),
    ("`read`", "read", "on", "right"),
    ("`compare`", "compare", "on", "right"),
    ("`glance`", "glance", "on", "right"),
    ("IoU with its tile (`read`)", "read", "forced", "iou"),
]
CONTROLS = {"blank crops": "blank", "random crops": "random", "no tool": "off", "perfect crops": "oracle"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGE = (1280, 1000)  # px of the page that docs/report.png shows


def short_table(runs: list[list[dict]]) -> str:
    """The README's table and a line of controls. runs: for each seed the rows of its answers.jsonl."""
    mean_title = f"after (mean of {len(runs)} seeds, 95 %)"
    lines = [["accuracy", "before", "before, forced", mean_title, "lowest seed"]]
    for line in ROWS:
        label, before, forced, *after, mean = row_cells(runs, line)
        lines.append([label, before, forced, mean, min(after, key=float)])
    found = []
    for label, arm in CONTROLS.items():
        means = [fmean(values(answers_of(rows, "after", arm, "read"), "right").values()) for rows in runs]
        found.append(f"{label} {fmean(means):.2f}")
    return as_table(lines, markdown=True) + "\n\nControls on `read`: " + ", ".join(found) + "."


def run_times(folders: list[Path]) -> str:
    minutes = []
    for folder in folders:
        rows = read_rows(folder / "metrics.jsonl")
        minutes.append(sum(row["sec_rollout"] + row["sec_train"] for row in rows) / 60)
    return (
        f"Rollouts and updates took {min(minutes):.1f} to {max(minutes):.1f} minutes a run, without scoring."
    )


def put(file: Path, name: str, text: str) -> None:
    """Put a text between the marks of this name. Raises ValueError where they are missing."""
    page = file.read_text(encoding="utf-8")
    mark = f"<!-- {name} -->"
    block = re.compile(rf"{re.escape(mark)}.*?<!-- end -->", re.S)
    if not block.search(page):
        raise ValueError(f"{file} has no marks {mark} and <!-- end -->")
    write_whole(file, block.sub(lambda _: f"{mark}\n{text}\n<!-- end -->", page, count=1))


# --------------------------------------------------------------------------------------------------
# Figures.


def draw_zoom(run: Path, file: Path) -> None:
    """One question at the first and the last step at which it was asked: look, boxes, crops, answer."""
    from matplotlib.figure import Figure

    rows = [row for row in read_rows(run / "trajectories.jsonl") if row.get("probe")]
    name = asked_again(rows)["ids"][0]
    asked = sorted((row for row in rows if row["id"] == name), key=lambda row: row["step"])
    sizes = {"height_ratios": (10, 3), "hspace": 0.02, "wspace": 0.05}
    figure = Figure(figsize=(7, 5.6))
    axes = figure.subplots(2, 2, gridspec_kw=sizes)
    for (above, below), row in zip(axes.T, (asked[0], asked[-1])):
        draw_look(above, row, run)
        draw_crop(below, row, run)
    figure.suptitle(asked[0]["question"], fontsize=14, y=0.97)
    figure.savefig(file, dpi=96, bbox_inches="tight")


def draw_look(axis, row: dict, run: Path) -> None:
    """The first look, the tile dashed, boxes in magenta; original pixels are the axes."""
    from matplotlib.patches import Rectangle

    width, height = row["size"]
    image = Image.open(run / "pictures" / row["pictures"][0])
    axis.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    styles = [(box, "white", "--") for box in row["targets"]] + [
        (box, "magenta", "-") for box in row["boxes"]
    ]
    for (left, top, right, bottom), color, line in styles:
        corner = (left, top)
        axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, color=color, ls=line, lw=2))
    axis.set_title(f"step {row['step']}", fontsize=12)
    axis.axis("off")


def draw_crop(axis, row: dict, run: Path) -> None:
    correct = row["reward"]["accuracy"] > 0
    answer = row["answer"] or "nothing"
    text = f"answers {answer}: {'correct' if correct else 'wrong, it is ' + row['gold']}"
    if row["pictures"][1:]:
        axis.imshow(Image.open(run / "pictures" / row["pictures"][1]))
    else:
        axis.text(0.5, 0.5, "no zoom", ha="center", va="center", transform=axis.transAxes, color="grey")
    axis.set_xlabel(text, fontsize=12, color="tab:green" if correct else "tab:red")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(not row["pictures"][1:])


def photograph(page: Path, file: Path) -> bool:
    """The top of a page as a browser shows it. False where there is no browser."""
    with tempfile.TemporaryDirectory() as folder:
        for browser in BROWSERS:
            command = [
                browser,
                "--headless",
                "--no-sandbox",
                "--hide-scrollbars",
                f"--user-data-dir={folder}",
            ]
            size = ",".join(map(str, PAGE))
            command += [f"--window-size={size}", f"--screenshot={file.absolute()}", page.absolute().as_uri()]
            try:
                return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
            except FileNotFoundError:
                continue
    return False


# --------------------------------------------------------------------------------------------------


def read_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m study.readme", description=__doc__, formatter_class=Help)
    parser.error = fail
    parser.add_argument("--seeds", default="0,1,2,11,30,31,32,33")
    parser.add_argument("--runs", default=RUNS, help="what the names of the run folders begin with")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> None:
    seeds = arguments.seeds.split(",")
    folders = [Path(f"{arguments.runs}-seed{seed}") for seed in seeds]
    if not all(read_json(folder / "eval.json").get("after") for folder in folders):
        flags = ["--seeds", arguments.seeds, "--out", arguments.runs, "--resume"]
        code = subprocess.run([sys.executable, str(ROOT / "train.py"), *flags]).returncode
        if code:
            sys.exit(code)
    write_pages(folders, seeds)
    draw_curves(folders, DOCS / "curves.png")
    draw_zoom(folders[0], DOCS / "zoom.png")
    if not photograph(folders[0] / "report.html", DOCS / "report.png"):
        print("docs/report.png is the old one: no Chromium here to take it")
    print("written: README.md, docs/results.md, and in docs/ curves.png, zoom.png, report.png; look at them")


def write_pages(folders: list[Path], seeds: list[str]) -> None:
    runs = [read_rows(folder / "answers.jsonl") for folder in folders]
    put(ROOT / "README.md", "results", short_table(runs))
    columns = [f"seed {seed}" for seed in seeds]
    put(DOCS / "results.md", "table", f"{table(runs, columns)}\n\n{run_times(folders)}")


if __name__ == "__main__":
    run_command(main, read_arguments)
