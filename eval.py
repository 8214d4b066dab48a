"""Score a model, with controls that show whether it looks: the same questions with the crop real, blank,
random or perfect.

python eval.py --model runs/tiny-toy/checkpoint-160 --data toy --arms on,off,blank,random,oracle
"""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from data import Sample, load, readable
from knobs import BIG, fail, knob, parse, write_json
from report import iou
from reward import is_correct
from rollout import ARMS, Trajectory, rollout

# "forced": the call is opened for the model, the box is its own. Tells *where* it zooms apart from *whether*.
ALL_ARMS = (*ARMS, "forced")
# The knobs of a rollout that train.py and eval.py must share for their scores to be comparable.
LIMITS = ("look_pixels", "crop_pixels", "max_turns", "max_turn_tokens", "max_tokens", "batch")
EVAL_SEED = 1_000_003  # the held-out questions are the same for every run


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


def summary(trajectories: list[Trajectory], judge=None) -> dict:
    """Accuracy, share that zoomed, delivered crops, IoU and share of whole glyphs, over some trajectories."""
    return {
        "n": len(trajectories),
        "accuracy": mean(is_correct(t.answer, t.sample, judge) for t in trajectories),
        "tool_rate": mean(bool(t.boxes) for t in trajectories),
        "crops": mean(len(t.boxes) for t in trajectories),
        "iou": mean(map(best_iou, trajectories)),
        "holds": mean(holds(t) for t in trajectories if t.boxes and t.sample.boxes),
    }


def evaluate(
    model, processor, samples: list[Sample], arms, *, seed: int = 0, judge=None, **rollout_knobs
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
            **rollout_knobs,
        )
        kinds = defaultdict(list)
        for trajectory in trajectories:
            kinds["all"].append(trajectory)
            if kind := trajectory.sample.meta.get("kind"):
                kinds[kind].append(trajectory)
        result[arm] = {kind: summary(members, judge) for kind, members in sorted(kinds.items())}
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


def stored_scores(file: Path) -> dict:
    return json.loads(file.read_text()) if file.exists() else {}


@dataclass
class Knobs:
    model: str = knob(
        "tiny", "preset, folder of a model, or checkpoint of a run (whose pixel and turn limits are used)"
    )
    data: str = knob("toy", "toy | toy-mixture | deepeyes | seal | a folder; its held-out part")
    arms: str = knob("on,off,blank,random,oracle,forced", "which of " + ", ".join(ALL_ARMS))
    limit: int = knob(500, "how many questions")
    seed: int = knob(EVAL_SEED, "picks the questions; the default are those that train.py holds out")
    out: str = knob("", "folder for eval.json (default: none is written)")
    look_pixels: int = knob(112 * 112, "pixel budget of the first look")
    crop_pixels: int = knob(134 * 134, "pixel budget of a crop")
    max_turns: int = knob(4, "model turns per question")
    max_turn_tokens: int = knob(48, "tokens the model may write in one turn")
    max_tokens: int = knob(320, "tokens of a whole completion, observations included")
    engine: str = knob("slots", "rollout: slots | generate")
    batch: int = knob(256, "questions at once")
    threads: int = knob(2, "CPU threads")


def read_knobs(argv: list[str]) -> Knobs:
    """Parse and check the knobs. A checkpoint's limits are those of its run, where none are given."""
    knobs, given = parse(Knobs, argv, __doc__)
    run = stored_scores(Path(knobs.model).parent / "args.json")
    for name in set(LIMITS) - given:
        usual = getattr(knobs, name) if knobs.model == "tiny" else BIG[name]
        setattr(knobs, name, run.get(name, usual))
    if unknown := set(knobs.arms.split(",")) - set(ALL_ARMS):
        fail(f"unknown arm {', '.join(sorted(unknown))}; known: {', '.join(ALL_ARMS)}")
    for name in ("limit", *LIMITS, "threads"):
        if getattr(knobs, name) < 1:
            fail(f"--{name} must be at least 1")
    return knobs


def main(knobs: Knobs) -> None:
    import torch
    import transformers

    from model import load_model

    torch.set_num_threads(knobs.threads)
    transformers.logging.disable_progress_bar()
    limits = {name: getattr(knobs, name) for name in LIMITS}
    samples = readable(load(knobs.data, split="test", limit=knobs.limit, seed=knobs.seed))
    model, processor = load_model(knobs.model)
    limits |= {"engine": knobs.engine, "progress": True}
    result = evaluate(model, processor, samples, knobs.arms.split(","), **limits)
    print(table(result))
    if knobs.out:
        file = Path(knobs.out) / "eval.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            file, stored_scores(file) | {f"{knobs.model}, seed {knobs.seed}": result, "knobs": vars(knobs)}
        )
        print(f"written: {file}")


if __name__ == "__main__":
    try:
        main(read_knobs(sys.argv[1:]))
    except ValueError as error:
        fail(str(error))
