"""What the rows of a data set can teach with these flags, said before any weight is fetched.

python -m machine.row_estimate deepeyes visualprobe mine/ --model qwen2.5-vl-3b      # several side by side
"""

import argparse
import random
from collections import defaultdict
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from config import Help, TrainConfig, fill_limits, look_budget, run_command
from data import BAD_ROW, ON_THE_HUB, Sample, is_cached
from engine.families import FAMILIES, Family
from evaluation.validation import load_questions
from grading.correct import verifiable
from machine.memory_estimate import PROMPT
from machine.time_estimate import OBSERVATION
from model import config_of
from safe.files import fail
from tools import fit, prompt

LOOKED_AT = 500  # rows of a source, at most: a header of each image is read
# Pixels of a crop that is counted, whatever --crop_pixels allows: crops are never enlarged beyond what they
# show, and a quarter of a photograph of 4 megapixels has so many.
LARGE_CROP = 1024 * 1024
TURN_SHARE = 3  # a turn is seldom longer than a third of its limit
SHOWN = 0.9  # of an image's pixels, all but the rounding to whole tokens: then the first look hides nothing
DRAWN = 20  # of the toy, which draws an image to know its size
ROOTED = ("seal", *ON_THE_HUB)  # data sets whose files may lie in a folder
HEAD = ("source", "rows", "rules can pay", "look hides", "look tokens", "prompt fits")
LETTERS_A_TOKEN = 4  # of a prompt, in English; no tokenizer is fetched for it


class SourceRows(NamedTuple):
    """What the rows of a source can teach, as fractions of those that were looked at."""

    rows: int
    looked_at: int
    payable: float  # rules can pay a correct answer
    hiding: float  # the first look hides something
    look_tokens: float  # mean visual tokens of the first look
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
        hidden, tokens = first_looks(some, config, family)
        found[source] = SourceRows(len(rows), len(some), payable, hidden, tokens, fitting)
    return found


def table(samples: list[Sample], config: TrainConfig) -> str:
    """A line for each source, a note where a judge would pay more, how many crops a completion holds."""
    found = by_source(samples, config)
    lines = [line_of(HEAD), *map(source_line, found, found.values())]
    family = FAMILIES[config_of(config.model).model_type]
    if not config.judge and any(source.payable < 1 for source in found.values()):
        lines.append("answers that rules can't pay count as wrong without --judge")
    if takes_crops(config):
        lines.append(crops_text(config, family.token_area))
    return "\n".join(lines)


def line_of(cells) -> str:
    name, rows, *others = cells
    return f"{name:<24}{rows:>8}" + "".join(f"{cell:>15}" for cell in others)


def source_line(name: str, source: SourceRows) -> str:
    fractions = [f"{value:.3f}" for value in (source.payable, source.hiding, source.fitting)]
    fractions.insert(2, f"{source.look_tokens:,.0f}")
    some = f"  (of {source.looked_at} rows)" if source.looked_at < source.rows else ""
    return line_of([name, f"{source.rows:,}", *fractions]) + some


def first_looks(samples: list[Sample], config: TrainConfig, family: Family) -> tuple[float, float]:
    """Of the readable images: the fraction of which the first look shows less than nine tenths of the pixels,
    and the mean visual tokens of the look."""
    hidden = []
    tokens = []
    for sample in samples:
        try:
            width, height = sample.stored().size
        except BAD_ROW:  # training leaves it out, and says so
            continue
        limits = config if sample.tool else replace(config, look_share=1.0)
        budget = look_budget(limits, (width, height))
        shown = fit((width, height), budget, 4 * family.token_area, family.token_side)
        hidden.append(shown[0] * shown[1] < SHOWN * width * height)
        tokens.append(shown[0] * shown[1] / family.token_area)
    return (fmean(hidden), fmean(tokens)) if hidden else (0.0, 0.0)


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


def read_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m machine.row_estimate", description=__doc__, formatter_class=Help
    )
    parser.error = fail
    parser.add_argument("data", nargs="+", help="as --data of train.py; its files in NAME=FOLDER, as --root")
    parser.add_argument("--model", default="qwen2.5-vl-3b", help="whose budgets count")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> None:
    print(line_of(HEAD))
    for given in arguments.data:
        name, _, root = given.partition("=")
        data, root = (name, root) if name in ROOTED else (given, "")
        config = fill_limits(TrainConfig(data=data, root=root, model=arguments.model), set())
        if not are_here(config):
            print(of_config(config).removeprefix("rows: "))
            continue
        for source, rows in by_source(training_rows(config), config).items():
            print(source_line(source, rows))


if __name__ == "__main__":
    run_command(main, read_arguments)
