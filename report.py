"""A run folder -> `curves.png`.

python report.py runs/tiny-toy
"""

import argparse
import json
import sys
from pathlib import Path

# panel title -> the keys of metrics.jsonl it shows
PANELS = {
    "Accuracy": ("accuracy", "acc_zoom", "acc_no_zoom"),
    "Trajectories that zoomed": ("tool_rate",),
    "Calls per trajectory": ("calls", "delivered", "errors"),
    "IoU of crops with the target": ("iou",),
    "Reward and its terms": ("reward", "reward_accuracy", "reward_format", "reward_tool"),
    "Model tokens per trajectory": ("tokens",),
    "Groups without a gradient": ("dead_groups",),
    "Entropy (nats per token)": ("entropy",),
    "Seconds per step": ("sec_rollout", "sec_train"),
}


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
        lambda row: row["dead_groups"] > 0.8,
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


def read_rows(file: Path) -> list[dict]:
    """The rows of a .jsonl file; a last line cut short by a kill is left out."""
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def rewind(file: Path, step: int) -> None:
    """Drop the rows after `step` (and a half-written one): those steps are about to be done again."""
    if file.exists():
        kept = "".join(json.dumps(row) + "\n" for row in read_rows(file) if row["step"] <= step)
        file.with_suffix(".tmp").write_text(kept)
        file.with_suffix(".tmp").rename(file)


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


def draw_curves(run: Path) -> Path:
    """Write `curves.png` into the run folder: the panel of the paper's figure, and what tells a healthy
    run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_rows(run / "metrics.jsonl")
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(3, 3, figsize=(13, 9), constrained_layout=True)
    for axis, (title, keys) in zip(axes.flat, PANELS.items()):
        for color, key in zip(("tab:blue", "tab:orange", "tab:green", "tab:red"), keys):
            values = [row.get(key) for row in rows]
            axis.plot(
                steps,
                [float("nan") if v is None else v for v in values],
                color=color,
                alpha=0.25,
                linewidth=1,
            )
            axis.plot(steps, smooth(values), color=color, label=key)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend(fontsize=7, framealpha=0.5)
    figure.suptitle(f"{run.name}: thin lines are steps, thick ones means over 5 steps", fontsize=11)
    figure.savefig(run / "curves.png", dpi=80)
    plt.close(figure)
    return run / "curves.png"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, with metrics.jsonl in it")
    run = parser.parse_args().run
    if not (run / "metrics.jsonl").exists():
        print(
            f"report.py: error: {run} holds no metrics.jsonl; give the folder of a training run",
            file=sys.stderr,
        )
        sys.exit(2)
    print(f"written: {draw_curves(run)}")


if __name__ == "__main__":
    main()
