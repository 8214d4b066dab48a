"""Run folders -> `curves.png`, and `report.html`: see the model think, in one file that opens anywhere.

python report.py runs/tiny-toy
python report.py runs/one runs/other runs/third      # several: curves overlaid, runs that differ only in
                                                     # their seed as one line with a band
"""

import argparse
import base64
import io
import re
import secrets
from collections import Counter, defaultdict
from itertools import combinations, cycle
from pathlib import Path

from boxes import iou
from compare import cell, labels_of, same_but_seed, score_rows, scores_text
from knobs import Help, fail, read_json, write_whole
from runs import read_rows
from story import (
    ARM_WORDS,
    LEAST,
    asked,
    asked_again,
    box_clouds,
    health_word,
    reach,
    sentence,
    small_curves,
    smooth,
    without_thin_means,
)

PICTURE_BYTES = 9_000_000  # of all pictures in a page; they are made smaller until they fit
SIDES = (640, 448, 320, 224, 160, 112, 80)  # px
GROUPS = 250  # most groups of a run in its page, spread over the steps
TEXT = 4000  # most characters of a turn that are shown
COLORS = ("blue", "orange", "green", "red", "purple", "brown", "pink", "gray")

# panel -> the keys of metrics.jsonl it shows, what healthy looks like, what to try when it isn't
PANELS = {
    "Accuracy": (("accuracy", "acc_zoom", "acc_no_zoom"), "Rises; with zoom above without.",
                 "Flat at chance: is the answer in the crop at all (oracle arm)? Else a larger --group."),
    "Trajectories that zoomed": (("tool_rate",), "Rises and stays, where zooming is needed.",
                                 "Falls to 0: collapse. --bonus conditional, --curiosity, selected data."),
    "Calls per trajectory": (("calls", "delivered", "errors"), "A few early on, then as many as needed.",
                             "Keeps growing: spam. --max_turns; --bonus conditional."),
    "IoU of crops with the target": (("iou",), "Rises: it learns where, not only whether.",
                                     "Flat: boxes of any size are paid alike. Lower --crop_pixels."),
    "Reward and its terms": (("reward", "reward_accuracy", "reward_format", "reward_tool"),
                             "All rise together.", "Tool term without accuracy: an unearned bonus."),
    "Model tokens per trajectory": (("tokens",), "Grows, then shrinks as it learns to aim.",
                                    "Runs away: --max_turn_tokens, --mask_overlong."),
    "Groups without a gradient": (("dead_groups",), "Rises as questions are solved.",
                                  "Near 1 early on: select_data.py, or --refill."),
    "Entropy (nats per token)": (("entropy",), "Falls slowly and stays above 0.",
                                 "Near 0: it has stopped exploring. Lower --lr, --lr_schedule linear."),
    "Largest logprob gap": (("logp_gap",), "Below 1e-3 in float32, below 1 in bfloat16.",
                            "Grows: sampler and trainer are not the same policy."),
    "Accuracy with zoom minus without": (("zoom_gain",), "Above 0 where zooming helps.",
                                         "At 0: it zooms for show. Lower --look_pixels."),
    "Seconds per step": (("sec_rollout", "sec_train"), "Flat.", "Long rollouts: --batch."),
}  # fmt: skip

# trouble -> what it looks like in a step's row, and what to do. It counts when it lasts for `LASTING` steps.
LASTING = 5
TROUBLES = {
    "collapse": (
        lambda row: row["tool_rate"] is not None and row["tool_rate"] < 0.05,
        "fewer than 5 % of the trajectories zoom: raise --group or --prompts, or try --curiosity 0.5",
    ),
    "spam": (
        lambda row: row["repeats"] > 0.3,
        "more than 30 % of the trajectories zoom on one box again: --bonus conditional, fewer --max_turns",
    ),
    "fake zoom": (
        lambda row: row["blind_luck"] is not None and row["blind_luck"] > 0.5,
        "more than half of the right answers after a zoom never touched the target: lower --look_pixels",
    ),
    "dead groups": (
        lambda row: (
            row["dead_groups"] > 0.8 and row.get("accuracy", 0) < 0.9
        ),  # else it is all solved
        "more than 80 % of the groups teach nothing (all right or all wrong): select the data, or --refill",
    ),
    "entropy": (
        lambda row: row["entropy"] is not None and row["entropy"] < 0.02,
        "the entropy is below 0.02: the policy has stopped exploring; lower --lr",
    ),
    "garbage": (
        lambda row: row["garbage"] > 0.2,
        "more than 20 % of the trajectories repeat one token: the policy is breaking down; lower --lr",
    ),
    "gradient": (
        lambda row: (row.get("grad_jump") or 0) > 50,
        "the gradient is more than 50 times its usual size: lower --lr",
    ),
    "no numbers": (
        lambda row: row.get("left_out", 0) > 0,
        "an update was no number and was left out: lower --lr",
    ),
    "logprob gap": (
        lambda row: (row["logp_gap"] or 0) > 2.0,
        "sampler and trainer disagree by more than 2 nats on a token: a bug, or diverged weights",
    ),
}


AT_ONCE = ("gradient", "no numbers")  # troubles that one step shows; others have to last


def health(rows: list[dict]) -> list[tuple[str, str]]:
    """The troubles of a run that the last steps show: (name, what it is and what to try).

    >>> fine = dict(tool_rate=1.0, repeats=0.0, blind_luck=None, dead_groups=0.1, entropy=0.3, garbage=0.0,
    ...             logp_gap=0.0)
    >>> health([fine] * 9), [name for name, _ in health([fine] + [fine | {"tool_rate": 0.01}] * 5)]
    ([], ['collapse'])
    """
    found = []
    last = rows[-LASTING:]
    for name, (seen, text) in TROUBLES.items():
        if name in AT_ONCE:
            shows = bool(last) and seen(last[-1])
        else:
            shows = len(last) == LASTING and all(map(seen, last))
        if shows:
            found.append((name, text))
    return found


def print_new_troubles(rows: list[dict], known: set[str]) -> bool:
    """Print the last steps' troubles that are not `known` yet, and add them; returns whether any was new."""
    fresh = [(name, text) for name, text in health(rows) if name not in known]
    for name, text in fresh:
        print(f"  UNWELL: {text}", flush=True)
        known.add(name)
    return bool(fresh)


def history(rows: list[dict]) -> list[dict]:
    """Every trouble a run has had, with the steps at which it showed."""
    found = {}
    for i in range(1, len(rows) + 1):
        for name, text in health(rows[max(0, i - LASTING) : i]):
            first = i - 1 if name in AT_ONCE else i - LASTING
            trouble = found.setdefault(
                name, {"name": name, "text": text, "first": rows[first]["step"]}
            )
            trouble["last"] = rows[i - 1]["step"]
    return list(found.values())


STATED = re.compile(r"(?:answer is|it is|it's|=)\s*\**([A-Za-z0-9]+)")


PATTERNS = {
    "search": "a box apart from the one before, which touched no target",
    "comparison": "boxes on different targets",
    "confirmation": "a box over an earlier one",
    "correction": "an answer stated before a crop is not the final one",
}


def patterns(row: dict) -> list[str]:
    """The paper's thinking patterns (see `PATTERNS`), by rules on the record of a trajectory.

    Over an earlier box: an IoU above 0.5. An answer is stated after "answer is", "it is" or "="; the final
    one must be of its kind, with one target at most.

    >>> patterns({"boxes": [[0, 0, 9, 9], [50, 50, 60, 60]], "targets": [[50, 50, 60, 60]], "turns": []})
    ['search']
    >>> patterns({"boxes": [[0, 0, 9, 9]], "targets": [], "turns": ["it is B", "now"], "answer": "A"})
    ['correction']
    """
    boxes = row["boxes"]
    targets = row["targets"]
    touched = [[iou(box, target) > 0 for target in targets] for box in boxes]
    found = []
    for i in range(len(boxes) - 1):
        if targets and not any(touched[i]) and iou(boxes[i], boxes[i + 1]) < 0.1:
            found.append("search")
            break
    if len({hits.index(True) for hits in touched if sum(hits) == 1}) > 1:
        found.append("comparison")
    if any(iou(a, b) > 0.5 for a, b in combinations(boxes, 2)):
        found.append("confirmation")
    if is_corrected(row):
        found.append("correction")
    return found


def is_corrected(row: dict) -> bool:
    """Was another answer stated before a crop than in the end, and one of the same kind?"""
    stated = [match.lower() for turn in row["turns"][:-1] for match in STATED.findall(turn)]
    answer = (row.get("answer") or "").strip().lower()
    if not stated or not answer or len(row["targets"]) > 1:
        return False
    same_kind = answer_kind(stated[-1]) == answer_kind(
        answer
    )  # not "red=A", then "no" or "left"
    return same_kind and stated[-1] not in (answer, answer[:1])


def answer_kind(text: str) -> str:
    if text in ("yes", "no"):
        return "yes or no"
    return "letter" if len(text) == 1 else "text"


def spread_out(rows: list[dict], most: int) -> list[dict]:
    """Rows of at most `most` groups, evenly over the steps; probe questions always."""
    groups = list(dict.fromkeys((r["step"], r["id"]) for r in rows if not r.get("probe")))
    kept = (
        {groups[i * len(groups) // most] for i in range(most)}
        if len(groups) > most
        else set(groups)
    )
    return [row for row in rows if row.get("probe") or (row["step"], row["id"]) in kept]


def shareable(args: dict) -> dict:
    """Knobs without what a page that is passed on should not tell: places on this machine, and URLs.

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
    """Pictures as data URLs, all at the largest side at which they fit into `PICTURE_BYTES` together."""
    from PIL import Image

    pictures = {}
    for side in SIDES:
        pictures = {}
        total = 0
        for file in files:
            # In a stranger's run a link may lead anywhere
            if file.is_symlink() or not file.is_file():
                continue
            try:
                picture = Image.open(file).convert("RGB")
            except OSError:  # a picture lost or cut short by a kill: the page goes without
                continue
            picture.thumbnail((side, side))
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=70)
            pictures[file.name] = data_url(buffer.getvalue(), "webp")
            total += len(pictures[file.name])
            if total > PICTURE_BYTES:
                break
        if total <= PICTURE_BYTES:
            break
    return pictures


# --------------------------------------------------------------------------------------------------
# Curves.


def series(run: Path) -> list[dict]:
    """A run's metrics without means over very few trajectories, and with what is computed from the rest."""
    rows = read_rows(run / "metrics.jsonl")
    args = read_json(run / "args.json")
    if "prompts" in args and "group" in args:
        rows = [without_thin_means(row, args["prompts"] * args["group"]) for row in rows]
    for row in rows:
        zoom = row.get("acc_zoom")
        none = row.get("acc_no_zoom")
        row["zoom_gain"] = zoom - none if zoom is not None and none is not None else None
    return rows


def draw_line(axis, runs: list[Path], key: str, label: str, color: str) -> None:
    """A metric over the steps: one run as a thin and a smooth line, several as their mean and a band."""
    import numpy as np

    rows = [series(run) for run in runs]
    length = min(map(len, rows))
    steps = [row["step"] for row in rows[0][:length]]
    values = [smooth([row.get(key) for row in own[:length]]) for own in rows]
    values = np.array(values, dtype=float)  # (runs, steps)
    if len(runs) == 1:
        raw = np.array([row.get(key) for row in rows[0]], dtype=float)  # None becomes nan
        axis.plot(steps, raw, ".-", color=color, alpha=0.25, linewidth=1, markersize=2)
    else:
        axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2)
    axis.plot(steps, values.mean(0), color=color, label=label)


def draw_curves(runs, out: Path | None = None) -> Path:
    """Write `curves.png`: the panels of the paper's figure, and what tells a healthy run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = [runs] if isinstance(runs, Path) else runs
    out = out or runs[0] / "curves.png"
    groups = same_but_seed(runs)
    alone = len(groups) == 1
    figure, axes = plt.subplots(4, 3, figsize=(13, 12), constrained_layout=True)
    for axis, (title, (keys, healthy, _)) in zip(axes.flat, PANELS.items()):
        colors = cycle(f"tab:{name}" for name in COLORS)
        if alone:
            for key in keys:
                draw_line(axis, runs, key, key, next(colors))
        else:
            for name, members in groups.items():
                draw_line(axis, members, keys[0], name, next(colors))
        axis.set_title(title if alone else f"{title}: {keys[0]}", fontsize=10)
        axis.set_xlabel(f"step.   Healthy: {healthy}", fontsize=8)
        axis.grid(alpha=0.3)
        if len(axis.get_legend_handles_labels()[0]) > 1:
            axis.legend(fontsize=7, framealpha=0.5)
    axes.flat[-1].axis("off")
    bands = max(map(len, groups.values())) > 1
    seeds = "bands from the lowest to the highest seed" if bands else "thin lines are steps"
    figure.suptitle(
        f"{' | '.join(groups)[:110]}: means over 5 steps; {seeds}; without points of fewer than {LEAST}"
        " trajectories",
        fontsize=11,
    )
    figure.savefig(out, dpi=80)
    plt.close(figure)
    return out


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
    knobs = shareable(args)
    return {
        "label": label,
        "sentence": sentence(args, rows, stored),
        "asked": asked(knobs, stored | {"protocol": shareable(stored.get("protocol", {}))}),
        "args": knobs,
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
        row["turns"] = [
            turn[:TEXT] + (" [cut]" if len(turn) > TEXT else "") for turn in row["turns"]
        ]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of runs, of train.py or eval.py"
    )
    parser.add_argument(
        "--out", type=Path, help="the page to write (of several: compare.html beside them)"
    )
    arguments = parser.parse_args()
    for run in arguments.runs:
        if not any(
            (run / name).exists()
            for name in ("metrics.jsonl", "eval.json", "trajectories.jsonl")
        ):
            fail(f"{run} holds no metrics.jsonl and no eval.json; give the folder of a run")
    if len(arguments.runs) > 1:
        print(scores_text(arguments.runs))
    page = make_page(arguments.runs, arguments.out)
    print(f"page:   {page}")
    if any((run / "metrics.jsonl").exists() for run in arguments.runs):
        print(f"curves: {curves_beside(page)}")


if __name__ == "__main__":
    main()
