"""Score a model, with controls that show whether it looks: the same questions with the crop real, blank,
random or perfect.

python eval.py --model runs/tiny-toy/checkpoint-150 --data toy --arms on,off,blank,random,oracle
"""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from transformers import HfArgumentParser

from data import Sample, load
from reward import is_correct
from rollout import ARMS, Trajectory, rollout

# "forced": the call is opened for the model, the box is its own. Tells *where* it zooms apart from *whether*.
ALL_ARMS = (*ARMS, "forced")


def iou(a, b) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2 in one frame.

    >>> iou((0, 0, 10, 10), (5, 0, 15, 10))
    0.3333333333333333
    """
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def best_iou(trajectory: Trajectory) -> float | None:
    """Mean over the delivered crops of the IoU with the nearest target; None without crops or targets."""
    targets = trajectory.sample.boxes
    if not targets or not trajectory.boxes:
        return None
    return fmean(max(iou(box, target) for target in targets) for box in trajectory.boxes)


def holds(trajectory: Trajectory) -> bool:
    """Is what has to be read (`meta["glyphs"]`, else a target box) wholly inside one of the crops?"""
    wanted = trajectory.sample.meta.get("glyphs") or trajectory.sample.boxes
    return any(
        box[0] <= x1 and box[1] <= y1 and box[2] >= x2 and box[3] >= y2
        for box in trajectory.boxes
        for x1, y1, x2, y2 in wanted
    )


def mean(values) -> float | None:
    values = [v for v in values if v is not None]
    return fmean(values) if values else None


def summary(trajectories: list[Trajectory]) -> dict:
    """Accuracy, share that zoomed, delivered crops, IoU and share of whole glyphs, over some trajectories."""
    return {
        "n": len(trajectories),
        "accuracy": mean(is_correct(t.answer, t.sample) for t in trajectories),
        "tool_rate": mean(bool(t.boxes) for t in trajectories),
        "crops": mean(len(t.boxes) for t in trajectories),
        "iou": mean(map(best_iou, trajectories)),
        "holds": mean(holds(t) for t in trajectories if t.boxes and t.sample.boxes),
    }


def evaluate(
    model, processor, samples: list[Sample], arms, *, seed: int = 0, progress: bool = False, **rollout_knobs
) -> dict:
    """Greedy answers of every arm: {arm: {"all": summary, kind: summary, ...}}, kinds being
    `meta["kind"]`."""
    result = {}
    for arm in arms:
        forced = arm == "forced"
        trajectories = rollout(
            model,
            processor,
            samples,
            tool="on" if forced else arm,
            force_call=forced,
            temperature=0,
            seed=seed,
            progress=progress,
            **rollout_knobs,
        )
        kinds = defaultdict(list)
        for trajectory in trajectories:
            kinds["all"].append(trajectory)
            kinds[trajectory.sample.meta.get("kind", "all")].append(trajectory)
        result[arm] = {kind: summary(members) for kind, members in sorted(kinds.items())}
    return result


def table(result: dict) -> str:
    """The arms as a text table, accuracy (and share that zoomed) by kind of question."""
    kinds = list(next(iter(result.values())))
    lines = [f"{'arm':<16}" + "".join(f"{kind:>16}" for kind in kinds) + f"{'IoU':>8}{'whole':>8}"]
    for arm, by_kind in result.items():
        cells = "".join(f"{by_kind[k]['accuracy']:>9.3f} ({by_kind[k]['tool_rate']:.2f})" for k in kinds)
        aim = by_kind.get("read", by_kind["all"])
        lines.append(
            f"{arm:<16}{cells}"
            + "".join(f"{'-' if v is None else format(v, '.2f'):>8}" for v in (aim["iou"], aim["holds"]))
        )
    return "\n".join(
        lines
        + ["accuracy (share that zoomed); IoU and share of crops that hold the whole glyph: read questions"]
    )


@dataclass
class Knobs:
    model: str = field(default="tiny", metadata={"help": "preset, folder of a model, or checkpoint of a run"})
    data: str = field(default="toy", metadata={"help": "data set"})
    arms: str = field(
        default="on,off,blank,random,oracle,forced", metadata={"help": "which of " + ", ".join(ALL_ARMS)}
    )
    limit: int = field(default=500, metadata={"help": "how many questions"})
    seed: int = field(default=1, metadata={"help": "picks the questions"})
    out: str = field(default="", metadata={"help": "folder for eval.json (default: none is written)"})
    look_pixels: int = field(default=112 * 112, metadata={"help": "pixel budget of the first look"})
    crop_pixels: int = field(default=134 * 134, metadata={"help": "pixel budget of a crop"})
    max_turns: int = field(default=5, metadata={"help": "model turns per question"})


def main() -> None:
    (knobs,) = HfArgumentParser(Knobs, description=__doc__).parse_args_into_dataclasses()
    arms = knobs.arms.split(",")
    if unknown := set(arms) - set(ALL_ARMS):
        sys.exit(f"eval.py: error: unknown arm {', '.join(unknown)}; known: {', '.join(ALL_ARMS)}")
    from model import load_model

    try:
        samples = load(knobs.data, split="test", limit=knobs.limit, seed=knobs.seed)
        model, processor = load_model(knobs.model)
    except ValueError as error:
        print(f"eval.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    result = evaluate(
        model,
        processor,
        samples,
        arms,
        progress=True,
        look_pixels=knobs.look_pixels,
        crop_pixels=knobs.crop_pixels,
        max_turns=knobs.max_turns,
    )
    print(table(result))
    if knobs.out:
        Path(knobs.out).mkdir(parents=True, exist_ok=True)
        (Path(knobs.out) / "eval.json").write_text(
            json.dumps({"knobs": vars(knobs), "arms": result}, indent=1)
        )
        print(f"written: {Path(knobs.out) / 'eval.json'}")


if __name__ == "__main__":
    main()
