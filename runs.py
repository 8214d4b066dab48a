"""The run folder: what is in it, written whole or appended line by line, so that a kill costs little.

args.json            the knobs
metrics.jsonl        a line for each step
trajectories.jsonl   a sample of groups, their pictures in pictures/
eval.json            scores before and after
answers.jsonl        the answers that these are made of, a line for each question, arm and time
checkpoint-*/        the LoRA adapter, and what a resume needs
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

from knobs import fail, write_json, write_whole


def make_run_folder(wanted: str, usual: str, knobs: dict) -> Path:
    """Create the run folder and write its args.json. If `wanted` is empty it gets the usual name, with a
    number if that is taken."""
    usual = usual.replace(":", "-")  # of a variant of the toy
    run = Path(wanted or usual)
    number = 2
    while not wanted and run.exists():
        run = Path(f"{usual}-{number}")
        number += 1
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "args.json", knobs | {"out": str(run), "resume": False})
    except OSError as error:
        fail(f"can't write to the run folder {run}: {error.strerror}")
    return run


def last_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint; a half-written one (trainer_state.json comes last) is passed over."""
    complete = []
    for folder in run.glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text())
            complete.append((state["global_step"], folder))
        except (OSError, ValueError, KeyError):
            continue
    return max(complete)[1] if complete else None


def append_rows(file: Path, *rows: dict) -> None:
    """Append lines to a .jsonl file in one write: a kill can cut them short, never garble earlier ones."""
    with file.open("a") as lines:
        lines.write("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(file: Path) -> list[dict]:
    """The rows of a .jsonl file ([] where there is none); a last line cut short by a kill is left out."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_rows(file: Path, wanted) -> list[dict]:
    """Rewrite a .jsonl file with only the whole rows for which `wanted(row)` holds; returns them."""
    rows = [row for row in read_rows(file) if wanted(row)]
    if file.exists():
        write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def step_text(row: dict, steps: int) -> str:
    """A step's row of metrics.jsonl as a line for people."""
    text = {key: "  - " if value is None else f"{value:.2f}" for key, value in row.items()}
    return (
        f"step {row['step']:>4}/{steps}  reward {text['reward']}  accuracy {text['accuracy']}  "
        f"zoomed {text['tool_rate']}  calls {text['calls']}  IoU {text['iou']}  tokens {text['tokens']}  "
        f"dead groups {text['dead_groups']}  {text['sec_rollout']} + {text['sec_train']} s"
    )


def observed_texts(trajectory, tokenizer) -> list[str]:
    """What the model was shown after each turn, as text; a picture's pads as [crop]."""
    spans = []
    inside = False
    for token, sampled in zip(trajectory.completion_ids, trajectory.sampled):
        if not sampled and not inside:
            spans.append([])
        if not sampled:
            spans[-1].append(token)
        inside = not sampled
    if trajectory.sampled and not trajectory.sampled[0]:
        spans = spans[
            1:
        ]  # an opening that was written before the first turn, whose text holds it
    return [re.sub(r"(<\|image_pad\|>)+", "[crop]", tokenizer.decode(ids)) for ids in spans]


def store_trajectory(run: Path, trajectory, pictures: list[str], tokenizer, **more) -> None:
    """Append a trajectory to trajectories.jsonl for the page, its pictures to pictures/ under these names.

    more: further fields of the row, such as step, reward, advantage.
    """
    (run / "pictures").mkdir(exist_ok=True)
    for name, picture in zip(pictures, trajectory.images):
        picture.save(run / "pictures" / name)
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
        "errors": trajectory.errors,
        "observations": observed_texts(trajectory, tokenizer),
        "answer": trajectory.answer,
        "stop": trajectory.stop,
        "pictures": pictures,
    }
    append_rows(run / "trajectories.jsonl", row | more)


def store_group(
    run: Path, step: int, trajectories, rewards, tokenizer, *, probe: bool = False
) -> None:
    """Append a group to the stored trajectories; probe: questions that are answered over and over instead."""
    for member, (trajectory, reward) in enumerate(zip(trajectories, rewards)):
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
            reward=asdict(reward),
            advantage=None if probe else trajectory.advantage,
        )
