"""report.html: what a run or several have stored, on one page that needs nothing else and opens anywhere."""

import base64
import io
import secrets
from pathlib import Path

from runlog.box_plot import box_clouds, reach
from runlog.compare import comparison, labels_of
from runlog.curves import PANELS, draw_curves, series, small_curves
from runlog.health import history
from runlog.runs import run_args
from runlog.summary import ARM_WORDS, asked, asked_again, health_word, sentence
from safe.files import read_json, read_rows, write_whole

IMAGE_BYTES = 9_000_000  # of all images in a page; they are made smaller until they fit
SIDES = (640, 448, 320, 224, 160, 112, 80)  # px
TEXT = 4000  # most characters of a turn that are shown


def make_page(runs: Path | list[Path], out: Path | None = None, draw: bool = True) -> Path:
    """Write `report.html` of a run, or `compare.html` beside several: sentence, curves, health and scores of
    all, trajectories of the first. draw: curves.png, too, which takes a second or two."""
    from jinja2 import Environment, FileSystemLoader

    runs = [runs] if isinstance(runs, Path) else runs
    first = runs[0]
    out = out or (first / "report.html" if len(runs) == 1 else first.parent / "compare.html")
    trained = [run for run in runs if (run / "metrics.jsonl").exists()]
    curves = curves_beside(out)
    if trained and draw:
        draw_curves(trained, curves)
    labels = labels_of(runs)
    rows = shown_rows(first)
    names = sorted({name for row in rows for name in row["pictures"]})
    clouds = box_clouds(rows) if trained else []
    again = asked_again(rows)
    titles, compared = comparison(runs)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "page"), autoescape=True)
    environment.trim_blocks = True
    environment.lstrip_blocks = True
    page = environment.get_template("report.jinja").render(
        title=", ".join(labels) if len(runs) < 6 else f"{len(runs)} runs",
        alone=len(runs) == 1,
        trained=bool(trained),
        runs=[run_content(run, label) for run, label in zip(runs, labels)],
        nonce=secrets.token_hex(16),
        panels=PANELS,
        curves=bool(trained) and curves.exists() and data_url(curves.read_bytes(), "png"),
        clouds=clouds,
        reach=reach(clouds),
        again=again,
        compared_titles=titles,
        compared=compared,
        arm_words=ARM_WORDS,
        data={
            "trajectories": rows,
            "again": again["ids"],
            "pictures": encode([first / "pictures" / name for name in names]),
        },
    )
    write_whole(out, page)
    return out


def curves_beside(page: Path) -> Path:
    """Where a page's curves are drawn: curves.png beside a report.html, else under the page's own name."""
    return page.with_name("curves.png" if page.stem == "report" else f"{page.stem}.png")


def run_content(run: Path, label: str) -> dict:
    """What the page says of one run: its sentence, its health, its scores, and its flags."""
    args = run_args(run)
    stored = read_json(run / "eval.json")
    rows = series(run)
    troubles = history(rows)
    last = rows[-1] if rows else {}
    flags = shareable(args)
    if "protocol" in stored:
        stored["protocol"] = shareable(stored["protocol"])
    return {
        "label": label,
        "sentence": sentence(args, rows, stored),
        "asked": asked(flags, stored),
        "flags": flags,
        "trained": (run / "metrics.jsonl").exists(),
        "health": health_word(troubles, last.get("step")),
        "troubles": troubles,
        "first_step": rows[0]["step"] if rows else None,
        "last": last,
        "curves": small_curves(rows),
        "scores": {when: stored[when] for when in ("before", "after", "arms") if when in stored},
        "stored": stored,
    }


def shareable(args: dict) -> dict:
    """Flags without what a page that is passed on should not tell: places on this machine, and URLs.

    >>> shareable({"model": "/home/me/models/qwen", "judge": "http://10.0.0.1/v1", "lr": 1e-5})
    {'model': 'qwen', 'judge': '', 'lr': 1e-05}
    """
    shown = {}
    for key, value in args.items():
        if isinstance(value, str) and "://" in value:
            value = ""
        if isinstance(value, str) and Path(value).is_absolute():
            value = Path(value).name
        shown[key] = value
    return shown


# --------------------------------------------------------------------------------------------------
# Trajectories and their images.


def shown_rows(run: Path) -> list[dict]:
    """The stored trajectories that go into the page: groups newest first, probe questions oldest first."""
    rows = read_rows(run / "trajectories.jsonl")
    for row in rows:
        row["turns"] = [turn[:TEXT] + (" [cut]" if len(turn) > TEXT else "") for turn in row["turns"]]
        # Bare file names: no path may lead out of the folder.
        row["pictures"] = [Path(name).name for name in row["pictures"]]
    return sorted(rows, key=lambda row: row["step"] if row.get("probe") else -row["step"])


def encode(files: list[Path]) -> dict[str, str]:
    """Images as data URLs, all at the largest side at which they fit into `IMAGE_BYTES` together."""
    for side in SIDES:
        images = {}
        total = 0
        for file in files:
            if content := shrunk(file, side):
                images[file.name] = data_url(content, "webp")
                total += len(images[file.name])
            if total > IMAGE_BYTES:
                break
        if total <= IMAGE_BYTES:
            break
    return images


def shrunk(file: Path, side: int) -> bytes:
    """An image at no more than `side` pixels; b"" if there is none."""
    from PIL import Image

    # In a stranger's run a link may lead anywhere
    if file.is_symlink() or not file.is_file():
        return b""
    try:
        image = Image.open(file).convert("RGB")
    except OSError:  # lost or cut short by a kill: the page goes without
        return b""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return buffer.getvalue()


def data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
