"""What every script needs from the command line: knobs, presets, limits, and errors in one line.

Nothing heavy is imported here: a mistyped flag must not cost ten seconds.
"""

import argparse
import logging
import os
import sys
import textwrap
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from safe.files import fail, read_json

# Every script starts here. What torch reads when it is imported: the slots' growth leaves blocks behind
# that are too small for the next one, unless segments can grow.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
# bitsandbytes complains, when imported, of CPU kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

from transformers import HfArgumentParser


def knob(default, text: str):
    """A field of a dataclass that is a flag of the command line, with its line in --help."""
    return field(default=default, metadata={"help": text})


@dataclass
class Limits:
    """What a trajectory may cost, and how trajectories are computed: the same flags for every command.

    The defaults are those of the tiny model; a preset brings its own, a checkpoint those of its run.
    """

    look_pixels: int = knob(
        112 * 112,
        "pixels (an area) of the first look; at full size zooming brings nothing new",
    )
    crop_pixels: int = knob(112 * 112, "pixels (an area) of each crop as it is shown")
    max_turns: int = knob(4, "model turns in a trajectory, so one zoom less than that")
    max_turn_tokens: int = knob(48, "tokens the model may write in one turn")
    max_tokens: int = knob(320, "tokens of a whole completion, observations included")
    batch: int = knob(256, "trajectories sampled at once; lower it where memory is short")
    engine: Literal["slots", "generate"] = knob(
        "slots",
        "slots: a cache slot for each trajectory (fast); generate: turn by turn (plain)",
    )
    threads: int = knob(2, "CPU threads, and processes of a tiny model's rollout")
    quantize: Literal["", "4bit"] = knob("", "4bit: the language model's weights in NF4")
    tools: str = knob("zoom", "on offer: zoom, or zoom,rotate (see toolbox.py)")


# What train.py starts from with other models than the tiny one ("big"), where nothing else is given.
BIG = {
    "data": "deepeyes", "steps": 80, "lr": 2e-5, "lr_schedule": "constant", "lora": 32, "micro_batch": 8,
    "save_every": 5, "eval_size": 200,
}  # fmt: skip
DATASETS = ("toy", "toy-mixture", "deepeyes", "seal")
# Of eval.py, by their kind; benchmarks/ says what is in them.
BENCHMARK_KINDS = {
    "vstar": "looking",
    "hrbench4k": "looking",
    "hrbench8k": "looking",
    "mme-realworld-lite": "looking",
    "pope": "looking",
    "refcoco": "grounding",
    "refcoco+": "grounding",
    "refcocog": "grounding",
    "reasonseg": "grounding",
    "mathvista": "reasoning",
    "mathverse": "reasoning",
    "mathvision": "reasoning",
    "wemath": "reasoning",
    "dynamath": "reasoning",
    "logicvista": "reasoning",
}
# The arms in which a question is asked. In "forced" the call is opened for the model and the box is its own:
# that tells *where* it zooms apart from *whether*.
ARMS = ("on", "off", "blank", "random", "swap", "oracle", "forced")
EVAL_SEED = 1_000_003  # the held-out questions are the same for every run
LIMITS = tuple(each.name for each in fields(Limits))


def rollout_limits(knobs: Limits) -> dict:
    """The limits as keyword arguments of `rollout`, which takes a model that is loaded already."""
    return {name: getattr(knobs, name) for name in LIMITS if name != "quantize"}


@dataclass(frozen=True)
class Preset:
    """A name for a model, and the limits to start from where nothing else is given."""

    place: str  # Hub name or folder
    limits: Limits


def big_limits(quantize: str = "", batch: int = 64) -> Limits:
    """Limits of a real model on one card: for Qwen2.5-VL a look of 1,000 visual tokens, crops of 400.

    For Qwen3-VL they are the same pixels, so 765 and 306 of its larger tokens: what a first look shows, and
    what only a crop shows, is the same for both.
    """
    return Limits(
        look_pixels=1000 * 28 * 28,
        crop_pixels=400 * 28 * 28,
        max_turns=5,
        max_turn_tokens=384,
        max_tokens=2048,
        batch=batch,
        threads=8,
        quantize=quantize,
    )


PRESETS = {
    "tiny": Preset(str(Path(__file__).parent / "toy" / "base"), Limits()),
    "qwen2.5-vl-3b": Preset("Qwen/Qwen2.5-VL-3B-Instruct", big_limits()),
    "qwen2.5-vl-7b": Preset("Qwen/Qwen2.5-VL-7B-Instruct", big_limits("4bit", batch=32)),
    "qwen2.5-vl-32b": Preset("Qwen/Qwen2.5-VL-32B-Instruct", big_limits("4bit")),
    # Eight heads of keys where the 3B has two: a slot takes three and four times as much.
    "qwen3-vl-2b": Preset("Qwen/Qwen3-VL-2B-Instruct", big_limits(batch=32)),
    "qwen3-vl-4b": Preset("Qwen/Qwen3-VL-4B-Instruct", big_limits(batch=16)),
    "qwen3-vl-8b": Preset("Qwen/Qwen3-VL-8B-Instruct", big_limits("4bit", batch=16)),
}


BIG_MODEL = "qwen2.5-vl-3b"


def big_values(kind) -> dict:
    """The values from which a script's knobs start with a big model, where they are others than shown."""
    usual = {each.name: each.default for each in fields(kind)}
    values = asdict(PRESETS[BIG_MODEL].limits)
    if "lr" in usual:
        values |= BIG
    return {name: value for name, value in values.items() if usual.get(name, value) != value}


def usual_limits(model: str) -> Limits:
    """The limits of a preset, also by its name on the Hub; for any other model those of a big one."""
    place = model if Path(model).exists() else model.partition("@")[0]
    for name, preset in PRESETS.items():
        if place in (name, preset.place):
            return preset.limits
    return big_limits()


def fill_limits(knobs: Limits, given: set[str]) -> None:
    """Set the limits that were not given: as in the run that wrote the checkpoint, else as usual.

    knobs needs a field `model`: a preset, folder, Hub name, or a checkpoint inside a run folder.
    """
    usual = asdict(usual_limits(knobs.model))
    usual["threads"] = min(usual["threads"], os.cpu_count() or 1)
    run = {} if knobs.model in PRESETS else run_knobs(Path(knobs.model))
    for name in LIMITS:
        if name not in given:
            setattr(knobs, name, run.get(name, usual[name]))


def fill_big(knobs, given: set[str]) -> None:
    """Set train.py's knobs that were not given to those of `BIG`, for any model but the tiny one."""
    if knobs.model == "tiny":
        return
    for name, value in BIG.items():
        if name not in given:
            setattr(knobs, name, value)


def run_knobs(model: Path) -> dict:
    """The knobs of the run that wrote a checkpoint or a merged model; {} for any other model."""
    try:
        own = model / "args.json"  # a run's folder stands for its newest checkpoint
        run = read_json(own if own.exists() else model.parent / "args.json")
    except ValueError as error:
        fail(str(error))
    run.pop("threads", None)  # of the machine, not of the run
    if not (model / "adapter_config.json").exists():
        run.pop("quantize", None)  # merged weights are whole
    return run


def check_at_least(least: float, knobs, names: str) -> None:
    """End the script if one of these knobs is smaller, or no number at all."""
    for name in names.split():
        if not least <= getattr(knobs, name) < 2**32:  # false for nan, too
            fail(f"--{name} must be at least {least}")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown, and the commands of a script's docstring left as they are written."""


# What other programs call it.
ELSEWHERE = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "epochs": "steps",
    "num_train_epochs": "steps",
    "output_dir": "out",
    "num_generations": "group",
    "batch_size": "prompts",
    "per_device_train_batch_size": "micro_batch",
    "max_samples": "limit",
    "dataset": "data",
    "model_name_or_path": "model",
    "lora_r": "lora",
    "kl_coef": "beta",
    "resume_from_checkpoint": "resume",
    "wandb": "report_to",
    "use_wandb": "report_to",
    "num_samples": "limit",
}
GPU = "a GPU is chosen with CUDA_VISIBLE_DEVICES=1 in front of the command"


def hint(unknown: list[str], known) -> str:
    """The flag that was meant by one of another program, or by a typo. known: fields of the knobs."""
    names = [field.name for field in known]
    for word in unknown:
        given = word.lstrip("-").split("=")[0].replace("-", "_")
        if not word.startswith("--") or not given:
            continue
        if given in ("device", "gpu", "gpu_id", "gpus"):
            return GPU
        meant = ELSEWHERE.get(given)
        close = [meant] if meant in names else get_close_matches(given, names, 1, 0.75)
        if close:
            return f"did you mean --{close[0]}?"
    return "see --help"


def check_data_name(name: str, benchmarks=()) -> None:
    """End the script for a data set that there is not, before weights are fetched.

    benchmarks: names that will do, too.
    """
    known = (*DATASETS, *benchmarks)
    if name.partition(":")[0] in known or Path(name).is_dir():
        return
    if name in BENCHMARK_KINDS:
        fail(f"{name} is a benchmark: eval.py --data {name} asks its questions")
    close = get_close_matches(name, known, 1, 0.6)
    meant = f" (did you mean {close[0]}?)" if close else ""
    fail(f"unknown data set {name!r}: neither one of {', '.join(known)} nor a folder{meant}")


def parse(kind, argv: list[str], doc: str):
    """Read the knobs of a dataclass; returns them, and the names of those that were given."""
    big = big_values(kind)
    note = f"big: of any model but the tiny one; here {BIG_MODEL}'s"
    if "plan" in kind.__dataclass_fields__:
        note += " (--plan prints what is in force)"
    settings = {"description": doc, "formatter_class": Help, "allow_abbrev": False}
    parser = HfArgumentParser(kind, epilog=note, **settings)
    for action in parser._actions:  # the only way to a flag that a dataclass has made
        if action.dest in big:
            action.help += f" (big: {big[action.dest]})"
    parser.error = fail  # one line, where argparse shows the usage of fifty knobs first
    # A file train.args beside train.py would be read as flags, silently
    knobs, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        fail(f"unrecognized arguments: {' '.join(unknown)} ({hint(unknown, fields(kind))})")
    flags = [word[2:].split("=")[0] for word in argv if word.startswith("--")]
    return knobs, {flag.replace("-", "_") for flag in flags}


def knobs_text(knobs) -> str:
    """All knobs in force, as they would be typed."""
    words = []
    for name, value in asdict(knobs).items():
        if value not in ("", False, []):
            words.append(f"--{name}\N{NO-BREAK SPACE}{value}")
    text = textwrap.fill("  ".join(words), 110, break_on_hyphens=False)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def is_name(revision: str) -> bool:
    """Is it a branch, a tag or nothing, whose commit can change?

    >>> is_name("main"), is_name("1" * 40)
    (True, False)
    """
    return len(revision) < 40


def run_command(main, read_knobs) -> None:
    """Run a script: mistakes of the user end in one line, and so does Ctrl-C."""
    try:
        main(read_knobs(sys.argv[1:]))
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped; run the same command again (stored results are used)")
        sys.exit(130)
