"""Other bases that RL could start from: one whose boxes lie anywhere, and one that hardly calls."""

import random
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from model import load_model
from toy import lessons
from toy.make_base import STEPS, Lessons, learn

LR = 3e-4


def make_cold_base(folder: Path, steps: int = 300) -> Path:
    """Teach the tiny base, in 300 more supervised steps, to call with boxes that lie anywhere at all."""
    return teach(folder, steps, "loose_box", box_anywhere)


def make_shy_base(folder: Path, steps: int = 100) -> Path:
    """Teach it, in 100 more supervised steps, to call more rarely: a call's first token weighs an eighth."""
    return teach(folder, steps, "CALL", lessons.CALL / 8)


def teach(folder: Path, steps: int, name: str, value) -> Path:
    """The tiny base after the last lessons once more, with one thing in toy/lessons.py replaced.

    name, value: what is replaced. All other lessons go on, grounding among them. Returns the folder.
    """
    if (folder / "model.safetensors").exists():
        return folder
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model, processor = load_model("tiny", device="cpu")
    model.train()
    # As the base was made: the backward pass of sdpa is twice as slow on a CPU.
    model.model.language_model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98))
    usual = getattr(lessons, name)
    setattr(lessons, name, value)
    try:
        ahead = DataLoader(
            Lessons(processor, STEPS, seed=1),
            batch_size=None,
            sampler=range(STEPS - steps, STEPS),
            num_workers=1,
            prefetch_factor=4,
            multiprocessing_context="fork",  # any other would not see what is replaced
        )
        for parts in tqdm(ahead, desc=folder.name):
            learn(model, parts, [optimizer])
    finally:
        setattr(lessons, name, usual)
    processor.save_pretrained(folder)
    model.eval().save_pretrained(folder)  # last: it marks the folder as done
    return folder


def box_anywhere(rng: random.Random, tile) -> list[float]:
    """A box of the usual size anywhere in the look; its pixels are the look's."""
    width = rng.uniform(14, 40)
    height = rng.uniform(14, 40)
    x = rng.uniform(0, lessons.LOOK - width)
    y = rng.uniform(0, lessons.LOOK - height)
    return [x, y, x + width, y + height]


# The name of a base's line in the study -> what makes it
MAKERS = {"cold base": make_cold_base, "shy base": make_shy_base}
