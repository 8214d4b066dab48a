from itertools import cycle
from pathlib import Path

from runlog.compare import same_but_seed
from runlog.summary import LEAST, smooth, without_thin_means
from safe.files import read_json, read_rows

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
