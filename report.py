"""Run folders -> `curves.png`, and `report.html`: see the model think, in one file that opens anywhere.

python report.py runs/tiny-toy
python report.py runs/one runs/other runs/third      # several: curves overlaid, runs that differ only in
                                                     # their seed as one line with a band
"""

import argparse
import base64
import io
import json
import re
from collections import Counter, defaultdict
from itertools import cycle
from pathlib import Path

from knobs import Help, fail

PICTURE_BYTES = 9_000_000  # of all pictures in a page; they are made smaller until they fit
SIDES = (640, 448, 320, 224, 160, 112, 80)  # px
GROUPS = 250  # most groups of a run in its page, spread over the steps
TEXT = 4000  # most characters of a turn that are shown

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
        lambda row: row["dead_groups"] > 0.8 and row.get("accuracy", 0) < 0.9,  # else it is all solved
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
    "logprob gap": (
        lambda row: row["logp_gap"] > 2.0,
        "sampler and trainer disagree by more than 2 nats on a token: a bug, or weights gone astray",
    ),
}


def health(rows: list[dict]) -> list[tuple[str, str]]:
    """The troubles of a run that the last steps show: (name, what it is and what to try).

    >>> fine = dict(tool_rate=1.0, repeats=0.0, blind_luck=None, dead_groups=0.1, entropy=0.3, garbage=0.0,
    ...             logp_gap=0.0)
    >>> health([fine] * 9), [name for name, _ in health([fine] + [fine | {"tool_rate": 0.01}] * 5)]
    ([], ['collapse'])
    """
    last = rows[-LASTING:]
    if len(last) < LASTING:
        return []
    return [(name, text) for name, (seen, text) in TROUBLES.items() if all(map(seen, last))]


def history(rows: list[dict]) -> list[dict]:
    """Every trouble a run has had, with the steps at which it showed."""
    found = {}
    for i in range(LASTING, len(rows) + 1):
        for name, text in health(rows[:i]):
            trouble = found.setdefault(name, {"name": name, "text": text, "first": rows[i - LASTING]["step"]})
            trouble["last"] = rows[i - 1]["step"]
    return list(found.values())


# --------------------------------------------------------------------------------------------------
# Reading run folders.


def read_rows(file: Path) -> list[dict]:
    """The rows of a .jsonl file; a last line cut short by a kill is left out."""
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def rewrite(file: Path, keep) -> list[dict]:
    """The rows of a .jsonl file that are whole and to be kept; the file is brought to that, at once."""
    if not file.exists():
        return []
    rows = [row for row in read_rows(file) if keep(row)]
    file.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file.with_suffix(".tmp").rename(file)
    return rows


def iou(a, b) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2 in one frame.

    >>> iou((0, 0, 10, 10), (5, 0, 15, 10))
    0.3333333333333333
    """
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


STATED = re.compile(r"(?:answer is|it is|it's|=)\s*\**([A-Za-z0-9]+)")


def patterns(row: dict) -> list[str]:
    """The paper's thinking patterns, by rules on the record of a trajectory.

    search: a box apart from the one before, which touched no target. comparison: boxes on different targets.
    confirmation: a box over an earlier one (IoU above 0.5). correction: an answer stated before a crop (after
    "answer is", "it is" or "=") is not the final one, though of its kind, with one target at most.

    >>> patterns({"boxes": [[0, 0, 9, 9], [50, 50, 60, 60]], "targets": [[50, 50, 60, 60]], "turns": []})
    ['search']
    >>> patterns({"boxes": [[0, 0, 9, 9]], "targets": [], "turns": ["it is B", "now"], "answer": "A"})
    ['correction']
    """
    boxes, targets, found = row["boxes"], row["targets"], []
    touched = [[iou(box, target) > 0 for target in targets] for box in boxes]
    pairs = list(zip(range(len(boxes)), range(1, len(boxes))))
    if any(iou(boxes[i], boxes[j]) < 0.1 and targets and not any(touched[i]) for i, j in pairs):
        found.append("search")
    if len({hits.index(True) for hits in touched if sum(hits) == 1}) > 1:
        found.append("comparison")
    if any(iou(boxes[i], boxes[j]) > 0.5 for j in range(len(boxes)) for i in range(j)):
        found.append("confirmation")
    said = [match for turn in row["turns"][:-1] for match in STATED.findall(turn)]
    answer = (row.get("answer") or "").strip().lower()
    kinds = [(len(text) == 1, text in ("yes", "no")) for text in (said[-1].lower() if said else "", answer)]
    alike = kinds[0] == kinds[1]  # not "red=A", then "no" or "left"
    if answer and said and alike and len(targets) < 2 and said[-1].lower() not in (answer, answer[:1]):
        found.append("correction")
    return found


def observations(trajectory, tokenizer) -> list[str]:
    """What the model was given after each turn, as text; a picture's pads are shown as [crop]."""
    runs, before = [], 1
    for token, own in zip(trajectory.completion_ids, trajectory.sampled):
        if not own:
            runs = runs[:-1] + [runs[-1] + [token]] if not before else [*runs, [token]]
        before = own
    return [re.sub(r"(<\|image_pad\|>)+", "[crop]", tokenizer.decode(ids)) for ids in runs]


def store_trajectory(run: Path, t, pictures: list[str], tokenizer, **more) -> None:
    """Append a trajectory to trajectories.jsonl, its pictures to pictures/; more: step, reward ..."""
    (run / "pictures").mkdir(exist_ok=True)
    for name, picture in zip(pictures, t.images):
        picture.save(run / "pictures" / name)
    row = {"id": t.sample.id, "meta": t.sample.meta, "question": t.sample.text(), "gold": t.sample.answer}
    row |= {"targets": t.sample.boxes, "size": t.sample.open().size, "turns": t.turns, "boxes": t.boxes}
    row |= {"errors": t.errors, "observations": observations(t, tokenizer), "answer": t.answer}
    with (run / "trajectories.jsonl").open("a") as file:
        file.write(json.dumps(row | {"stop": t.stop, "pictures": pictures} | more) + "\n")


def spread_out(rows: list[dict], most: int) -> list[dict]:
    """Rows of at most `most` groups, evenly over the steps; probe questions always."""
    groups = list(dict.fromkeys((r["step"], r["id"]) for r in rows if not r.get("probe")))
    kept = {groups[i * len(groups) // most] for i in range(most)} if len(groups) > most else set(groups)
    return [row for row in rows if row.get("probe") or (row["step"], row["id"]) in kept]


def encode(files: list[Path]) -> dict[str, str]:
    """Pictures as data URLs, all at the largest side at which they fit into `PICTURE_BYTES` together."""
    from PIL import Image

    pictures = {}
    for side in SIDES:
        pictures, total = {}, 0
        for file in files:
            try:
                picture = Image.open(file).convert("RGB")
            except OSError:  # a picture lost or cut short by a kill: the page goes without
                continue
            picture.thumbnail((side, side))
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=70)
            pictures[file.name] = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
            total += len(pictures[file.name])
            if total > PICTURE_BYTES:
                break
        if total <= PICTURE_BYTES:
            break
    return pictures


# --------------------------------------------------------------------------------------------------
# Curves.


def smooth(values: list[float | None], window: int = 5) -> list[float]:
    """Trailing mean over the last `window` steps; steps without a value take no part.

    >>> smooth([1.0, None, 3.0], window=2)
    [1.0, 1.0, 3.0]
    """
    result = []
    for i in range(len(values)):
        recent = [v for v in values[max(0, i + 1 - window) : i + 1] if v is not None]
        result.append(sum(recent) / len(recent) if recent else float("nan"))
    return result


def series(run: Path) -> list[dict]:
    """A run's metrics, with what is computed from them."""
    rows = read_rows(run / "metrics.jsonl")
    for row in rows:
        zoom, none = row.get("acc_zoom"), row.get("acc_no_zoom")
        row["zoom_gain"] = zoom - none if zoom is not None and none is not None else None
    return rows


def same_but_seed(runs: list[Path]) -> dict[str, list[Path]]:
    """Runs by what distinguishes them: those that differ only in seed and folder share a line."""
    args = {run: json.loads((run / "args.json").read_text()) for run in runs if (run / "args.json").exists()}
    differ = {
        key
        for key in set().union(*args.values(), ())
        if key not in ("seed", "out", "threads", "resume")
        and len({json.dumps(a.get(key)) for a in args.values()}) > 1
    }
    groups = defaultdict(list)
    for run in runs:
        own = args.get(run, {})
        groups[", ".join(f"{key} {own.get(key)}" for key in sorted(differ)) or run.name].append(run)
    return groups


def draw_curves(runs, out: Path | None = None) -> Path:
    """Write `curves.png`: the panels of the paper's figure, and what tells a healthy run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    runs = [runs] if isinstance(runs, Path) else runs
    out, groups = out or runs[0] / "curves.png", same_but_seed(runs)
    figure, axes = plt.subplots(4, 3, figsize=(13, 12), constrained_layout=True)
    colors = [f"tab:{c}" for c in ("blue", "orange", "green", "red", "purple", "brown", "pink", "gray")]
    for axis, (title, (keys, healthy, _)) in zip(axes.flat, PANELS.items()):
        lines = [(name, members, key) for name, members in groups.items() for key in keys]
        lines = lines if len(groups) == 1 else [line for line in lines if line[2] == keys[0]]
        for color, (name, members, key) in zip(cycle(colors), lines):
            label = key if len(groups) == 1 else name
            rows = [series(run) for run in members]
            length = min(map(len, rows))
            values = np.array([smooth([row.get(key) for row in own[:length]]) for own in rows], dtype=float)
            steps = [row["step"] for row in rows[0][:length]]
            if len(members) == 1:
                raw = [float("nan") if row.get(key) is None else row[key] for row in rows[0]]
                axis.plot(steps, raw, color=color, alpha=0.25, linewidth=1)
            else:
                axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2)
            axis.plot(steps, values.mean(0), color=color, label=label)
        axis.set_title(title if len(groups) == 1 else f"{title}: {keys[0]}", fontsize=10)
        axis.set_xlabel(f"step.   Healthy: {healthy}", fontsize=8)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize=7, framealpha=0.5)
    axes.flat[-1].axis("off")
    bands = max(map(len, groups.values())) > 1
    seeds = "bands from the lowest to the highest seed" if bands else "thin lines are steps"
    figure.suptitle(f"{' | '.join(groups)[:110]}: means over 5 steps; {seeds}", fontsize=11)
    figure.savefig(out, dpi=80)
    plt.close(figure)
    return out


# --------------------------------------------------------------------------------------------------
# The page.


def make_page(runs, out: Path | None = None) -> Path:
    """Write `report.html`: health, curves, patterns and trajectories of the first run, scores of all."""
    from jinja2 import Environment, FileSystemLoader

    runs = [runs] if isinstance(runs, Path) else runs
    run, out = runs[0], out or runs[0] / "report.html"
    trained = [r for r in runs if (r / "metrics.jsonl").exists()]
    curves = draw_curves(trained, out.with_name("curves.png")) if trained else None
    metrics = series(run) if (run / "metrics.jsonl").exists() else []
    shown = read_rows(run / "trajectories.jsonl") if (run / "trajectories.jsonl").exists() else []
    shown = spread_out(shown, GROUPS)
    for row in shown:
        row["patterns"] = patterns(row)
        row["turns"] = [turn[:TEXT] + (" [cut]" if len(turn) > TEXT else "") for turn in row["turns"]]
        row["pictures"] = [Path(name).name for name in row["pictures"]]  # a name is no way out of the folder
    names = sorted({name for row in shown for name in row["pictures"]})
    counted = defaultdict(Counter)
    for row in shown:
        counted[row["step"]].update(row["patterns"])
        counted[row["step"]]["trajectories"] += 1
    stored = {r.name: json.loads((r / "eval.json").read_text()) for r in runs if (r / "eval.json").exists()}
    scores = {name: {k: s[k] for k in ("before", "after", "arms") if k in s} for name, s in stored.items()}
    details = {name: {k: v for k, v in s.items() if k not in scores[name]} for name, s in stored.items()}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.jinja").render(
        title=", ".join(r.name for r in runs),
        args=json.loads((run / "args.json").read_text()) if (run / "args.json").exists() else {},
        troubles=history(metrics),
        last=metrics[-1] if metrics else {},
        panels=PANELS,
        curves=curves and "data:image/png;base64," + base64.b64encode(curves.read_bytes()).decode(),
        patterns={step: dict(count) for step, count in sorted(counted.items())},
        scores=scores,
        details=details,
        data={"trajectories": shown, "pictures": encode([run / "pictures" / name for name in names])},
    )
    out.with_suffix(".tmp").write_text(page, encoding="utf-8")
    out.with_suffix(".tmp").rename(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, of train.py or eval.py")
    parser.add_argument("--out", type=Path, help="the page to write; default: report.html in the first run")
    arguments = parser.parse_args()
    for run in arguments.runs:
        if not any((run / name).exists() for name in ("metrics.jsonl", "eval.json", "trajectories.jsonl")):
            fail(f"{run} holds no metrics.jsonl and no eval.json; give the folder of a run")
    page = make_page(arguments.runs, arguments.out)
    print(f"page:   {page}")
    if any((run / "metrics.jsonl").exists() for run in arguments.runs):
        print(f"curves: {page.with_name('curves.png')}")


if __name__ == "__main__":
    main()
