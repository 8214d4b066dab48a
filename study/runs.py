"""Do the runs of the study, ask what they have learned, and keep every answer as a character of a line."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from config import EVAL_SEED, PRESETS, rollout_limits
from data import load
from engine.inputs import pixel_budgets
from evaluation.scores import answer_records
from grading.boxes import iou
from model import load_model
from safe.checkpoints import newest_whole
from safe.files import append_rows, fail, read_rows
from safe.lock import hold
from study.arms import ARMS, AS_TINY, BASES, CROPS, KEPT, PER_SIZE, QUESTIONS, SIZES, Arm, in_turn, of_size
from study.bases import MAKERS
from study.stored import BEFORE
from toy.make_base import LR, STEPS, measure_skills, train

TRAIN = "--eval_size 0 --show_every 1000 --save_every 10"
SELECT = "--data toy-mixture --limit 2000"
CURVE_DATA = {of_size(pixels) for pixels in SIZES}


def do_all(folder: Path, stored: Path, seeds: int, only: list[str], base: int = 0) -> None:
    """Every run from a base that has no line in `stored` yet.

    folder: of the runs
    only: names of arms, [] for all
    base: its seed; 0 is the tiny one. Any other is made first, and trained in the plain arms alone: those
        that need no other base and no selected rows
    """
    unknown = set(only) - {arm.name for arm in ARMS}
    if unknown:
        fail(f"--only: no arm is called {sorted(unknown)[0]!r}; docs/study.md lists them")
    folder = folder / f"base-{base}"
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)  # two at once would do the same runs
    name = f"base {base}"
    lines = read_rows(stored)
    done = {(line["arm"], line["seed"]) for line in lines if line.get("base", BEFORE) == name}
    model = make_base(folder, base) if base else "tiny"
    for asked in BASES:
        # Bases that have to be made are asked below, when a run needs them.
        if asked not in MAKERS and (asked, 0) not in done:
            append_rows(stored, {"base": name} | ask_base(asked, model))
    turns = []
    for arm, seed in in_turn(ARMS):
        wanted = seed < seeds and (arm.name in only or not only)
        plain = not base or "{folder}" not in arm.flags
        if wanted and plain and (arm.name, seed) not in done:
            turns.append((arm, seed))
    print(f"{len(turns)} runs are missing; each adds a line to {stored}", flush=True)
    for arm, seed in tqdm(turns, unit="run"):
        tqdm.write(f"{arm.name}, seed {seed}", file=sys.stderr)
        if arm.name in ("selected", "by difficulty"):
            select(folder)
        for other, make in MAKERS.items():
            made = folder / other.replace(" ", "-")
            if made.name not in arm.flags:
                continue
            make(made)
            if (other, 0) not in done:
                append_rows(stored, {"base": name} | ask_base(other, str(made)))
                done.add((other, 0))
        append_rows(stored, {"base": name} | do_run(arm, seed, folder, model))


def make_base(folder: Path, seed: int) -> str:
    """The base of a seed by toy/make_base.py, which goes on where it was stopped. Returns its folder."""
    base = folder / "base"
    if not (base / "skills.json").exists():
        train(folder, STEPS, seed, threads=2, lr=LR)
    return str(base)


def ask_base(name: str, model: str) -> dict:
    """The line of a base, asked before any training."""
    return {"arm": name, "seed": 0} | ask_model(model, BASES[name], name == "base", CROPS.get(name))


def do_run(arm: Arm, seed: int, folder: Path, model: str) -> dict:
    """Train and ask; a run that was killed goes on. Returns its line."""
    plain = arm.name.replace(",", "").replace(" ", "-")
    run = folder / f"{plain}-{seed}"
    began = time.time()
    flags = arm.flags.format(folder=folder)
    if model != "tiny":
        flags = f"--model {model} {AS_TINY} --data toy {flags}"  # a second --data counts
    flags += f" --steps {arm.steps} --seed {seed} {TRAIN}"
    command = [*flags.split(), "--out", str(run), "--resume"]
    call("train.py", command, folder / f"{run.name}.log")
    seconds = time.time() - began
    line = {
        "arm": arm.name,
        "seed": seed,
        "steps": arm.steps,
        "seconds": round(seconds),
        "metrics": kept_metrics(run),
        "asked": {},
    }
    if arm.asked:
        line |= ask_model(str(newest_whole(run)), arm.asked, arm.skills)
    return line


def kept_metrics(run: Path) -> dict[str, list]:
    """The columns of metrics.jsonl that the study needs."""
    file = run / "metrics.jsonl"
    rows = read_rows(file)
    steps = [row["step"] for row in rows]
    if steps != list(range(1, len(steps) + 1)):  # two processes at once: each step twice
        fail(f"{file} does not hold every step once; remove {run} and run this again")
    metrics = {}
    for key in KEPT:
        values = [rounded(row.get(key)) for row in rows]
        if values.count(None) < len(values):
            metrics[key] = values
    return metrics


def rounded(value: float | None) -> float | None:
    """
    >>> rounded(0.12345), rounded(None)
    (0.123, None)
    """
    return None if value is None else round(value, 3)


def select(folder: Path) -> None:
    """The selected rows, and those that difficulty alone selects, from the same scores; made once."""
    selected = folder / "selected"
    difficulty = folder / "difficulty"
    log = folder / "select.log"
    if not (selected / "selected.parquet").exists():
        call("select_data.py", [*SELECT.split(), "--out", str(selected)], log)
    if not difficulty.exists():
        # A kill before the end leaves no folder that looks done.
        aside = folder / "difficulty.part"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(selected, aside)
        again = ["--out", str(aside), "--rescore", "--only_difficulty"]
        call("select_data.py", again, log)
        aside.rename(difficulty)


def call(script: str, flags: list[str], log: Path) -> None:
    """Run one of our own scripts, what it prints in a log."""
    command = [sys.executable, str(Path(__file__).parent.parent / script), *flags]
    with log.open("a") as lines:
        code = subprocess.run(command, stdout=lines, stderr=lines).returncode
    if code:
        fail(f"{script} ended with exit code {code}; its last lines are in {log}")


# --------------------------------------------------------------------------------------------------
# Questions.


def ask_model(
    name: str,
    asked,
    skills: bool = False,
    crop_pixels: int | None = None,
) -> dict:
    """{"asked": {"toy | on": compact answers, ...}}, and "skills". crop_pixels: None for the default."""
    limits = PRESETS["tiny"].limits
    if crop_pixels:
        limits = replace(limits, crop_pixels=crop_pixels)
    model, processor = load_model(name, device="cpu")
    pixel_budgets(processor, limits.look_pixels, limits.crop_pixels)
    found = {}
    for data, arm in asked:
        number = PER_SIZE if data in CURVE_DATA else QUESTIONS
        samples = load(data, split="test", limit=number, seed=EVAL_SEED)
        settings = rollout_limits(limits)
        way = arm
        if arm == "sampled":
            settings["temperature"] = 1.0
            way = "on"
        records = answer_records(model, processor, samples, way, **settings)
        with_boxes = arm in ("forced", "sampled")
        found[f"{data} | {arm}"] = compact(records, with_boxes)
    line = {"asked": found}
    if skills:
        line["skills"] = measure_skills(model, processor)
    return line


def compact(records: list[dict], with_boxes: bool) -> dict:
    """Answers in the order of the questions, a character each. with_boxes: the first crop of each and its
    target, ORIGINAL pixels, None without a crop."""
    kinds = ""
    correct = ""
    crops = ""
    for record in records:
        kinds += record["meta"]["kind"][0]
        correct += "1" if record["right"] else "0"
        crops += str(len(record["boxes"]))
    found = {"kinds": kinds, "right": correct, "crops": crops}
    if with_boxes:
        found["first"] = list(map(first_crop, records))
    return found


def first_crop(record: dict) -> list | None:
    """[box, the target that it overlaps most], whole ORIGINAL pixels."""
    if not record["boxes"] or not record["targets"]:
        return None
    box = record["boxes"][0]
    target = max(record["targets"], key=partial(iou, box))
    pair = []
    for corners in (box, target):
        pair.append([round(v) for v in corners])
    return pair
