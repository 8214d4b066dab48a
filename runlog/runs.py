"""The run folder: what is in it, written whole or appended line by line, so that a kill costs little.

args.json            the flags
data.json            the number of questions to train on, and a hash of them
metrics.jsonl        a line for each step
trajectories.jsonl   a sample of groups, their images in pictures/
eval.json            scores before and after
answers.jsonl        the answers that these are made of, a line for each question, arm and time
checkpoint-*/        the LoRA adapter, and what a resume needs
"""

import copy
import re
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from config import TrainConfig, as_now
from safe.files import append_rows, fail, file_name, read_json, write_json

PROBES = 6  # questions whose answers are stored again and again
LARGEST_SIDE = 640  # px, of images that eval.py stores


# --------------------------------------------------------------------------------------------------
# The folder.


def make_run_folder(config: TrainConfig) -> Path:
    """Create the run folder and write its args.json. config: of train.py; without `out` it gets the usual
    name, with a number if that is taken."""
    # A name that the user has given is used as it is.
    run = new_folder(usual_name(config), config.out, lambda folder: folder.exists() and not config.out)
    with told_in_a_line(run):
        write_json(run / "args.json", asdict(config) | {"out": str(run), "resume": False})
    return run


def usual_name(config: TrainConfig) -> str:
    """The run folder where none is given: the model, the data, and the seed if it is not the usual one."""
    name = f"{Path(config.model).name}-{Path(config.data).name}"
    name = name.replace(":", "-")  # of a variant of the toy
    return f"runs/{name}-seed{config.seed}" if config.seed else f"runs/{name}"


def new_folder(usual: str, wanted: str, fault) -> Path:
    """Make a folder of results, with the folders above it, and return it; one that is there already will do.

    usual: its name if none is wanted, numbered as usual-2, usual-3 and so on while fault(folder) says why it
    can't be taken. wanted: the name that the user has given, "" for none; one that has a fault ends the
    script with that line. So does a folder that can't be made.
    """
    folder = Path(wanted or usual)
    number = 2
    while why := fault(folder):
        if wanted:
            fail(f"{wanted} {why}; give another --out")
        folder = Path(f"{usual}-{number}")
        number += 1
    with told_in_a_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def told_in_a_line(folder: Path):
    """End the script with one line if what is inside can't write to this folder."""
    try:
        yield
    except OSError as error:
        fail(f"can't write to the run folder {folder}: {error.strerror}")


def run_args(run: Path) -> dict:
    """The flags of a run of train.py, old ones by their names of now; {} for any other folder."""
    return as_now(read_json(run / "args.json"))


# --------------------------------------------------------------------------------------------------
# The step's line on the screen.


STEP_KEYS = ("reward", "accuracy", "tool_rate", "calls", "iou", "tokens", "dead_groups")


def step_text(row: dict, steps: int, rows: list[dict] = ()) -> str:
    """A step's row of metrics.jsonl as a line for people, under the names that the row has. rows: of the
    steps so far.

    >>> row = dict.fromkeys(STEP_KEYS, 0.5) | {"step": 7, "iou": None, "sec_rollout": 2.14, "sec_train": 1.3}
    >>> print(step_text(row, 160))
    step    7/160  reward 0.50  accuracy 0.50  tool_rate 0.50  calls 0.50  iou   -   tokens 0.50  \
dead_groups 0.50  rollout 2.1 s  update 1.3 s
    """
    parts = [f"step {row['step']:>4}/{steps}"]
    for key in STEP_KEYS:
        parts.append(f"{key}   - " if row[key] is None else f"{key} {row[key]:.2f}")
    parts.append(f"rollout {row['sec_rollout']:.1f} s")
    parts.append(f"update {row['sec_train']:.1f} s")
    parts.append(time_left(rows, steps))
    return "  ".join(parts).rstrip()


def time_left(rows: list[dict], steps: int) -> str:
    """How long the rest of a run takes, by its last ten steps.

    >>> time_left([{"step": 5, "sec_rollout": 1.0, "sec_train": 1.0}], 65), time_left([], 9)
    ('2 min left', '')
    """
    if not rows:
        return ""
    last = rows[-10:]
    seconds = sum(row["sec_rollout"] + row["sec_train"] for row in last) / len(last)  # of a step
    minutes = seconds * (steps - rows[-1]["step"]) / 60
    return f"{minutes:.0f} min left" if minutes < 90 else f"{minutes / 60:.1f} h left"


# --------------------------------------------------------------------------------------------------
# Trajectories and their images.


def is_shown(step: int, every: int) -> bool:
    """Is this the step of a group that is stored with its images? Every so many steps at first; after a
    hundred of them half as often, and so on, so that a run ten times as long stores little more.

    >>> [is_shown(step, 10) for step in (0, 10, 15, 1010, 1020, 2020, 2040)]
    [True, True, False, False, True, False, True]
    """
    while step >= 100 * every:
        every *= 2
    return step % every == 0


def store_group(run: Path, step: int, trajectories, tokenizer, *, probe: bool = False) -> None:
    """Append a group to the stored trajectories; probe: questions that are answered again and again
    instead."""
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


def store_answer(run: Path, trajectory, correct: float | None, arm: str, tokenizer) -> None:
    """Store an answer for the page of eval.py, with small images. correct: 0 or 1, None if unknown."""
    name = file_name(trajectory.sample.id)
    small = copy.copy(trajectory)
    small.images = [image.copy() for image in trajectory.images]
    for image in small.images:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    images = [f"{name}-{arm}-{i}.png" for i in range(len(small.images))]
    reward = {"accuracy": correct, "format": 0.0, "tool": 0.0, "total": correct}
    fields = {"step": 0, "probe": False, "arm": arm, "advantage": None, "reward": reward}
    store_trajectory(run, small, images, tokenizer, **fields)


def store_trajectory(run: Path, trajectory, images: list[str], tokenizer, **fields) -> None:
    """Append a trajectory to trajectories.jsonl for the page, and its images to pictures/ under these names.

    fields: of the row, beside those of the trajectory, such as step, reward, advantage.
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
    append_rows(run / "trajectories.jsonl", row | fields)


def observed_texts(trajectory, tokenizer) -> list[str]:
    """What the model was shown after each turn, as text; an image's pads as [crop]."""
    tokens = zip(trajectory.completion_ids, trajectory.sampled)
    spans = []
    for sampled, span in groupby(tokens, key=lambda token: token[1]):
        if not sampled:
            spans.append([token for token, _ in span])
    if trajectory.sampled and not trajectory.sampled[0]:
        spans = spans[1:]  # an opening that was written before the first turn, whose text holds it
    return [re.sub(r"(<\|image_pad\|>)+", "[crop]", tokenizer.decode(ids)) for ids in spans]
