"""The run folder: what is in it, written whole or appended line by line, so that a kill costs little.

args.json            the flags
metrics.jsonl        a line for each step
trajectories.jsonl   a sample of groups, their images in pictures/
eval.json            scores before and after
answers.jsonl        the answers that these are made of, a line for each question, arm and time
checkpoint-*/        the LoRA adapter, and what a resume needs
"""

import copy
import re
from dataclasses import asdict
from pathlib import Path

from safe.files import append_rows, fail, write_json

PROBES = 6  # questions whose answers are stored over and over


def usual_name(config) -> str:
    """The run folder where none is given: the model, the data, and the seed if it is not the usual one."""
    name = f"{Path(config.model).name}-{Path(config.data).name}"
    name = name.replace(":", "-")  # of a variant of the toy
    return f"runs/{name}-seed{config.seed}" if config.seed else f"runs/{name}"


def make_run_folder(config) -> Path:
    """Create the run folder and write its args.json. config: of train.py; without `out` it gets the usual
    name, with a number if that is taken."""
    usual = usual_name(config)
    run = Path(config.out or usual)
    number = 2
    while not config.out and run.exists():
        run = Path(f"{usual}-{number}")
        number += 1
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "args.json", asdict(config) | {"out": str(run), "resume": False})
    except OSError as error:
        fail(f"can't write to the run folder {run}: {error.strerror}")
    return run


def is_shown(step: int, every: int) -> bool:
    """Is this the step of a group that is stored with its images? Every so many steps at first; after a
    hundred of them half as often, and so on, so that a run ten times as long stores little more.

    >>> [is_shown(step, 10) for step in (0, 10, 15, 1010, 1020, 2020, 2040)]
    [True, True, False, False, True, False, True]
    """
    while step >= 100 * every:
        every *= 2
    return step % every == 0


def image_bytes(config, done: int = 0) -> int:
    """What the images of a run's page take on the disk at most, from step `done` on. config: of train.py."""
    shown = sum(is_shown(step, config.show_every) for step in range(done, config.steps))
    looks = 1 + PROBES
    crops = (config.group + PROBES) * (config.max_turns - 1)
    pixels = looks * config.look_pixels + crops * config.crop_pixels
    return shown * pixels * 3  # a byte a colour, before PNG makes it smaller


def time_left(rows: list[dict], steps: int) -> str:
    """How long the rest of a run takes, by its last ten steps.

    >>> time_left([{"step": 5, "sec_rollout": 1.0, "sec_train": 1.0}], 65), time_left([], 9)
    ('2 min left', '')
    """
    if not rows:
        return ""
    last = rows[-10:]
    each = sum(row["sec_rollout"] + row["sec_train"] for row in last) / len(last)
    minutes = each * (steps - rows[-1]["step"]) / 60
    return f"{minutes:.0f} min left" if minutes < 90 else f"{minutes / 60:.1f} h left"


def step_text(row: dict, steps: int, rows: list[dict] = ()) -> str:
    """A step's row of metrics.jsonl as a line for people. rows: of the steps so far."""
    text = {key: "  - " if value is None else f"{value:.2f}" for key, value in row.items()}
    return (
        f"step {row['step']:>4}/{steps}  reward {text['reward']}  accuracy {text['accuracy']}  "
        f"zoomed {text['tool_rate']}  calls {text['calls']}  IoU {text['iou']}  tokens {text['tokens']}  "
        f"dead groups {text['dead_groups']}  {text['sec_rollout']} + {text['sec_train']} s  "
        f"{time_left(rows, steps)}"
    )


def observed_texts(trajectory, tokenizer) -> list[str]:
    """What the model was shown after each turn, as text; an image's pads as [crop]."""
    spans = []
    inside = False
    for token, sampled in zip(trajectory.completion_ids, trajectory.sampled):
        if not sampled and not inside:
            spans.append([])
        if not sampled:
            spans[-1].append(token)
        inside = not sampled
    if trajectory.sampled and not trajectory.sampled[0]:
        spans = spans[1:]  # an opening that was written before the first turn, whose text holds it
    return [re.sub(r"(<\|image_pad\|>)+", "[crop]", tokenizer.decode(ids)) for ids in spans]


def store_trajectory(run: Path, trajectory, images: list[str], tokenizer, **more) -> None:
    """Append a trajectory to trajectories.jsonl for the page, its images to pictures/ under these names.

    more: further fields of the row, such as step, reward, advantage.
    """
    (run / "pictures").mkdir(exist_ok=True)
    for name, image in zip(images, trajectory.images):
        image.save(run / "pictures" / name)
    sample = trajectory.sample
    row = {
        "id": sample.id,
        "meta": sample.meta,
        "question": sample.text(),
        "gold": sample.answer,
        "targets": sample.boxes,
        "size": sample.open().size,
        "turns": trajectory.turns,
        "boxes": trajectory.boxes,
        "tools": trajectory.used,
        "errors": trajectory.errors,
        "observations": observed_texts(trajectory, tokenizer),
        "answer": trajectory.answer,
        "stop": trajectory.stop,
        "pictures": images,
    }
    append_rows(run / "trajectories.jsonl", row | more)


def store_group(run: Path, step: int, trajectories, tokenizer, *, probe: bool = False) -> None:
    """Append a group to the stored trajectories; probe: questions that are answered over and over instead."""
    for member, trajectory in enumerate(trajectories):
        stem = f"{step:05}-probe-{member}" if probe else f"{step:05}-{member}"
        # A group shares its first look.
        look = f"probe-{member}-look.png" if probe else f"{step:05}-look.png"
        crops = [f"{stem}-{i}.png" for i in range(1, len(trajectory.images))]
        store_trajectory(
            run,
            trajectory,
            [look, *crops],
            tokenizer,
            step=step,
            member=member,
            probe=probe,
            reward=asdict(trajectory.reward),
            advantage=None if probe else trajectory.advantage,
        )


def store_answer(run: Path, trajectory, right: float | None, arm: str, tokenizer) -> None:
    """Store an answer for the page of eval.py, its images at most 640 px wide. right: None if unknown."""
    name = "".join(c if c.isalnum() else "-" for c in trajectory.sample.id)[-80:]
    small = copy.copy(trajectory)
    small.images = [image.copy() for image in trajectory.images]
    for image in small.images:
        image.thumbnail((640, 640))
    images = [f"{name}-{arm}-{i}.png" for i in range(len(small.images))]
    reward = {"accuracy": right, "format": 0.0, "tool": 0.0, "total": right}
    more = {"step": 0, "probe": False, "arm": arm, "advantage": None, "reward": reward}
    store_trajectory(run, small, images, tokenizer, **more)
