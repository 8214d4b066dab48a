"""What the rows of a data set can teach with these flags, said before any weight is fetched."""

import random
from collections import defaultdict
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from config import TrainConfig, look_budget
from data import BAD_ROW, ON_THE_HUB, Sample, is_cached
from engine.families import FAMILIES, Family
from evaluation.validation import load_questions
from grading.correct import verifiable
from machine.memory_estimate import PROMPT
from machine.time_estimate import OBSERVATION
from model import config_of
from tools import fit, prompt

LOOKED_AT = 500  # rows of a source, at most: a header of each image is read
# Pixels of a crop that is counted, whatever --crop_pixels allows: crops are never enlarged beyond what they
# show, and a quarter of a photograph of 4 megapixels has so many.
LARGE_CROP = 1024 * 1024
TURN_SHARE = 3  # a turn is seldom longer than a third of its limit
SHOWN = 0.9  # of an image's pixels, all but the rounding to whole tokens: then the first look hides nothing
DRAWN = 20  # of the toy, which draws an image to know its size
LETTERS_A_TOKEN = 4  # of a prompt, in English; no tokenizer is fetched for it


class SourceRows(NamedTuple):
    """What the rows of a source can teach, as fractions of those that were looked at."""

    rows: int
    looked_at: int
    payable: float  # rules can pay a correct answer
    hiding: float  # the first look hides something
    fitting: float  # the prompt is no longer than the memory estimate has it


def are_here(config: TrainConfig) -> bool:
    """Are the training rows of a config on this machine?"""
    repository = ON_THE_HUB.get(config.data)
    return not repository or bool(config.root) or is_cached(repository, "dataset", "README.md")


def of_config(config: TrainConfig) -> str:
    """`table` for the training rows of a config, if they are on this machine."""
    if not are_here(config):
        return (
            f"rows: {ON_THE_HUB[config.data]} is not on this machine yet, so what they can teach is not known"
        )
    return table(training_rows(config), config)


def training_rows(config: TrainConfig) -> list[Sample]:
    return load_questions(replace(config, eval_size=0))[0]


def by_source(samples: list[Sample], config: TrainConfig) -> dict[str, SourceRows]:
    """From a sample of each source where all rows would take long."""
    rows_of = defaultdict(list)
    for sample in samples:
        rows_of[sample.source].append(sample)
    family = FAMILIES[config_of(config.model).model_type]
    found = {}
    for source, rows in rows_of.items():
        most = DRAWN if rows[0].drawn else LOOKED_AT
        some = rows if len(rows) <= most else random.Random(0).sample(rows, most)
        payable = fmean(map(verifiable, some))
        fitting = fmean(map(prompt_fits, some))
        found[source] = SourceRows(len(rows), len(some), payable, look_hides(some, config, family), fitting)
    return found


def table(samples: list[Sample], config: TrainConfig) -> str:
    """A line for each source, a note where a judge would pay more, how many crops a completion holds."""
    lines = [f"{'source':<24}{'rows':>8}{'rules can pay':>16}{'look hides':>13}{'prompt fits':>14}"]
    found = by_source(samples, config)
    for name, source in found.items():
        fractions = f"{source.payable:>16.3f}{source.hiding:>13.3f}{source.fitting:>14.3f}"
        some = f"  (of {source.looked_at} rows)" if source.looked_at < source.rows else ""
        lines.append(f"{name:<24}{source.rows:>8,}{fractions}{some}")
    family = FAMILIES[config_of(config.model).model_type]
    if not config.judge and any(source.payable < 1 for source in found.values()):
        lines.append("answers that rules can't pay count as wrong without --judge")
    if takes_crops(config):
        lines.append(crops_text(config, family.token_area))
    return "\n".join(lines)


def look_hides(samples: list[Sample], config: TrainConfig, family: Family) -> float:
    """Fraction of the readable images of which the first look shows less than nine tenths of the pixels."""
    hidden = []
    for sample in samples:
        try:
            width, height = sample.stored().size
        except BAD_ROW:  # training leaves it out, and says so
            continue
        limits = config if sample.tool else replace(config, look_share=1.0)
        budget = look_budget(limits, (width, height))
        shown = fit((width, height), budget, 4 * family.token_area, family.token_side)
        hidden.append(shown[0] * shown[1] < SHOWN * width * height)
    return fmean(hidden) if hidden else 0.0


def prompt_fits(sample: Sample) -> bool:
    """Is the prompt's text within the tokens that the memory estimate counts? By its letters."""
    text = prompt(sample.text(), tool=sample.tool, boxed=not sample.tool)
    return len(text) / LETTERS_A_TOKEN <= PROMPT


def takes_crops(config: TrainConfig) -> bool:
    return config.tool == "on" and config.max_turns > 1


def crops_that_fit(config: TrainConfig, token_area: int) -> int:
    """Large crops in a completion whose turns are a third of the longest.

    token_area: pixels of a visual token.

    >>> big = TrainConfig(crop_pixels=400 * 784, max_turns=5, max_turn_tokens=384, max_tokens=2048)
    >>> crops_that_fit(big, 784)
    3
    """
    turn = config.max_turn_tokens // TURN_SHARE
    crop = min(config.crop_pixels, LARGE_CROP) // token_area + OBSERVATION + turn
    return min(config.max_turns - 1, max(0, config.max_tokens - turn) // crop)


def crops_text(config: TrainConfig, token_area: int) -> str:
    """How many crops a completion holds, and the flags if it is fewer than turns allow."""
    holds = crops_that_fit(config, token_area)
    wanted = config.max_turns - 1
    text = f"a completion holds {holds} large crops, of the {wanted} that --max_turns allows"
    return text if holds == wanted else text + ": raise --max_tokens, or lower --crop_pixels"


def check_crops(config: TrainConfig) -> None:
    """Raise ValueError for budgets that hold not one crop."""
    family = FAMILIES[config_of(config.model).model_type]
    if takes_crops(config) and not crops_that_fit(config, family.token_area):
        raise ValueError(
            f"not one crop of --crop_pixels {config.crop_pixels} fits into --max_tokens {config.max_tokens}:"
            " raise the one, or lower the other (--tool off trains without the zoom)"
        )
