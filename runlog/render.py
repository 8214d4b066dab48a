"""Run folders -> `curves.png`, and `report.html`: see the model think, in one file that opens anywhere.

python report.py runs/tiny-toy
python report.py runs/one runs/other runs/third      # several: curves overlaid, runs that differ only in
                                                     # their seed as one line with a band
"""

import base64
import io
import secrets
from collections import Counter, defaultdict
from pathlib import Path

from runlog.compare import cell, labels_of, score_rows
from runlog.curves import PANELS, draw_curves, series
from runlog.health import history
from runlog.patterns import PATTERNS, patterns
from runlog.summary import (
    ARM_WORDS,
    asked,
    asked_again,
    box_clouds,
    health_word,
    reach,
    sentence,
    small_curves,
)
from safe.files import read_json, read_rows, write_whole

PICTURE_BYTES = 9_000_000  # of all images in a page; they are made smaller until they fit
SIDES = (640, 448, 320, 224, 160, 112, 80)  # px
GROUPS = 250  # most groups of a run in its page, spread over the steps
TEXT = 4000  # most characters of a turn that are shown


def spread_out(rows: list[dict], most: int) -> list[dict]:
    """Rows of at most `most` groups, evenly over the steps; probe questions always."""
    groups = list(dict.fromkeys((r["step"], r["id"]) for r in rows if not r.get("probe")))
    kept = {groups[i * len(groups) // most] for i in range(most)} if len(groups) > most else set(groups)
    return [row for row in rows if row.get("probe") or (row["step"], row["id"]) in kept]


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


def data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def encode(files: list[Path]) -> dict[str, str]:
    """Images as data URLs, all at the largest side at which they fit into `PICTURE_BYTES` together."""
    from PIL import Image

    images = {}
    for side in SIDES:
        images = {}
        total = 0
        for file in files:
            # In a stranger's run a link may lead anywhere
            if file.is_symlink() or not file.is_file():
                continue
            try:
                image = Image.open(file).convert("RGB")
            except OSError:  # an image lost or cut short by a kill: the page goes without
                continue
            image.thumbnail((side, side))
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=70)
            images[file.name] = data_url(buffer.getvalue(), "webp")
            total += len(images[file.name])
            if total > PICTURE_BYTES:
                break
        if total <= PICTURE_BYTES:
            break
    return images


# --------------------------------------------------------------------------------------------------
# The page.


def curves_beside(page: Path) -> Path:
    """Where a page's curves are drawn: curves.png beside a report.html, else under the page's own name."""
    return page.with_name("curves.png" if page.stem == "report" else f"{page.stem}.png")


def stored_scores(labels: dict[Path, str]) -> tuple[dict, dict]:
    """The scores of runs by label, and what else their eval.json says."""
    scores = {}
    details = {}
    for run, label in labels.items():
        if stored := read_json(run / "eval.json"):
            tables = ("before", "after", "arms")
            scores[label] = {key: stored[key] for key in tables if key in stored}
            rest = {key: value for key, value in stored.items() if key not in scores[label]}
            if "protocol" in rest:
                rest["protocol"] = shareable(rest["protocol"])
            details[label] = rest
    return scores, details


def tell(run: Path, label: str) -> dict:
    """What a run has to tell: its sentence, its health, and with what they were got."""
    args = read_json(run / "args.json")
    stored = read_json(run / "eval.json")
    rows = series(run)
    troubles = history(rows)
    last = rows[-1] if rows else {}
    config = shareable(args)
    return {
        "label": label,
        "sentence": sentence(args, rows, stored),
        "asked": asked(config, stored | {"protocol": shareable(stored.get("protocol", {}))}),
        "args": config,
        "trained": (run / "metrics.jsonl").exists(),
        "health": health_word(troubles, last.get("step")),
        "troubles": troubles,
        "first_step": rows[0]["step"] if rows else None,
        "last": last,
        "curves": small_curves(rows),
    }


def shown_rows(run: Path) -> list[dict]:
    """The stored trajectories that go into the page: groups newest first, probe questions oldest first."""
    rows = spread_out(read_rows(run / "trajectories.jsonl"), GROUPS)
    for row in rows:
        row["patterns"] = patterns(row)
        row["turns"] = [turn[:TEXT] + (" [cut]" if len(turn) > TEXT else "") for turn in row["turns"]]
        # Bare file names: no path may lead out of the folder.
        row["pictures"] = [Path(name).name for name in row["pictures"]]
    return sorted(rows, key=lambda row: row["step"] if row.get("probe") else -row["step"])


def count_patterns(rows: list[dict]) -> dict:
    """How often each pattern was found, over all and by step; those that never were are left out."""
    by_step = defaultdict(Counter)
    for row in rows:
        by_step[row["step"]].update(row["patterns"])
        by_step[row["step"]]["trajectories"] += 1
    total = sum(by_step.values(), Counter())
    return {
        "total": total,
        "steps": sorted(by_step.items()),
        "found": [name for name in PATTERNS if total[name]],
        "never": [name for name in PATTERNS if not total[name]],
    }


def make_page(runs, out: Path | None = None, draw: bool = True) -> Path:
    """Write `report.html` of a run, or `compare.html` beside several: sentence, curves, health and scores of
    all, patterns and trajectories of the first. draw: curves.png, too, which takes a second or two."""
    from jinja2 import Environment, FileSystemLoader

    runs = [runs] if isinstance(runs, Path) else runs
    run = runs[0]
    alone = len(runs) == 1
    out = out or (run / "report.html" if alone else run.parent / "compare.html")
    trained = [each for each in runs if (each / "metrics.jsonl").exists()]
    curves = curves_beside(out)
    if trained and draw:
        draw_curves(trained, curves)
    drawn = bool(trained) and curves.exists()
    labels = dict(zip(runs, labels_of(runs)))
    shown = shown_rows(run)
    names = sorted({name for row in shown for name in row["pictures"]})
    scores, details = stored_scores(labels)
    rows = score_rows(runs)
    kinds = sorted(set().union(*(row["kinds"] for row in rows)))
    clouds = box_clouds(shown) if trained else []
    again = asked_again(shown)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.trim_blocks = True
    environment.lstrip_blocks = True
    page = environment.get_template("page/report.jinja").render(
        title=", ".join(labels.values()) if len(runs) < 6 else f"{len(runs)} runs",
        alone=alone,
        trained=bool(trained),
        stories=[tell(each, label) for each, label in labels.items()],
        nonce=secrets.token_hex(16),
        panels=PANELS,
        curves=drawn and data_url(curves.read_bytes(), "png"),
        clouds=clouds,
        reach=reach(clouds),
        again=again,
        patterns=count_patterns(shown),
        pattern_words=PATTERNS,
        scores=scores,
        details=details,
        beside={"rows": rows, "kinds": kinds},
        cell=cell,
        arm_words=ARM_WORDS,
        data={
            "trajectories": shown,
            "again": again["ids"],
            "pictures": encode([run / "pictures" / name for name in names]),
        },
    )
    write_whole(out, page)
    return out
