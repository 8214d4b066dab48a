"""Checkpoints that can be trusted: written aside, checked, then put in place."""

import json
import math
import os
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

NEEDED = (
    "trainer_state.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
)
ASIDE = ".unfinished"  # where the next one is written
IMAGES = 2**29  # bytes for the images of a page: what 80 steps with first looks of 1,000 tokens take at most
SPACE = 3  # checkpoints: the two that are kept, and the one that is written


class SaveFailed(RuntimeError):
    """A checkpoint could not be written, or was not what it should be."""


def fault(checkpoint: Path) -> str:
    """ "" for a whole checkpoint, else what is wrong with it; nothing heavy is loaded."""
    for name in NEEDED:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
        json.loads((checkpoint / "adapter_config.json").read_text())
    except (OSError, ValueError, KeyError):
        return "a .json file is broken"
    if not zipfile.is_zipfile(checkpoint / "optimizer.pt"):
        return "optimizer.pt is cut short"
    return weights_fault(checkpoint / "adapter_model.safetensors")


def weights_fault(file: Path) -> str:
    """Is a .safetensors file whole, as its header says?"""
    try:
        with safe_open(file, framework="numpy"):
            return ""
    except SafetensorError:
        return f"{file.name} is broken or cut short"


def step_of(checkpoint: Path) -> int:
    """
    >>> step_of(Path("runs/mine/checkpoint-80"))
    80
    """
    return int(checkpoint.name.partition("-")[2])


def all_checkpoints(run: Path) -> list[Path]:
    """Newest first."""
    found = []
    for folder in run.glob("checkpoint-*"):
        if folder.name.partition("-")[2].isdecimal():
            found.append(folder)
    return sorted(found, key=step_of, reverse=True)


def newest_whole(run: Path, say=None) -> Path | None:
    """The newest whole checkpoint of a run. say: told of those that are passed over."""
    for folder in all_checkpoints(run):
        trouble = fault(folder)
        if not trouble:
            return folder
        if say:
            say(f"{folder} is passed over: {trouble}")
    return None


def bytes_of(trained: int) -> int:
    """What a checkpoint takes: so many weights and two moments of each, in float32."""
    return 12 * trained + 2**20


def check_space(run: Path, trained: int) -> None:
    """Raise ValueError where the disk has no room for a run's checkpoints, and the images of its page.

    trained: weights.
    """
    needed = SPACE * bytes_of(trained) + IMAGES
    free = shutil.disk_usage(run).free
    if free < needed:
        missing = f"{needed / 2**30:.1f} GB are needed, and {free / 2**30:.1f} are free"
        raise ValueError(f"too little disk for checkpoints and images in {run}: {missing}")


def put_in_place(aside: Path, run: Path, keep: int) -> Path:
    """Check a checkpoint that has been written aside, move it into the run, and drop the oldest ones."""
    trouble = fault(aside) or not_finite(aside / "adapter_model.safetensors")
    if trouble:
        raise SaveFailed(f"the checkpoint is not whole: {trouble}")
    place = run / aside.name
    if place.exists():  # of an earlier life of this run, written again
        shutil.rmtree(place)
    os.replace(aside, place)
    whole = [folder for folder in all_checkpoints(run) if not fault(folder)]
    for folder in whole[keep:]:
        shutil.rmtree(folder)
    return place


def not_finite(file: Path) -> str:
    from safetensors.torch import load_file

    for name, weight in load_file(file).items():
        if not math.isfinite(weight.float().abs().max().item()):
            return f"{name} is not finite"
    return ""
