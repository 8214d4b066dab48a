"""What every script takes from the command line: flags, presets, limits, and errors in one line.

Nothing heavy is imported here: a mistyped flag must not cost ten seconds. A config is settled once, and is
frozen from then on.
"""

import argparse
import logging
import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar, Literal

from safe.files import fail, read_json

# Every script starts here, and libraries read these when they are imported. The slots' growth leaves blocks
# behind that are too small for the next one, unless torch's segments can grow.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# bitsandbytes complains, when imported, of CPU kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

from transformers import HfArgumentParser

# The groups of flags in --help, in their order; all others belong to the run. A config's own MOST_USED stand
# before all of them.
MOST_USED = "most used"
RUN = "the run"
GROUPS = {
    "the method": "protocol prompts group tool tools bonus crop_price crop_price_on price_from curiosity "
    "temperature lr lr_schedule lora iterations clip_high advantage loss_type beta judge arms repeats "
    "official_order prompt zoom k easiest solvable gain skip_crop only_difficulty",
    "the model and its budgets": "look_pixels crop_pixels max_turns max_turn_tokens max_tokens "
    "max_plain_tokens look_share",
    "the machine": "batch micro_batch engine threads quantize optim chunk",
}
URL_OF_A_JUDGE = "URL of an OpenAI-compatible endpoint for answers that rules can't tell"


def flag(default, text: str):
    """A field of a dataclass that is a flag of the command line, with its line in --help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Limits:
    """What a trajectory may cost, and how trajectories are computed: the same flags for every command.

    The defaults are those of the tiny model; a preset brings its own, a checkpoint those of its run.
    """

    look_pixels: int = flag(112 * 112, "pixels (an area) of the first look")
    crop_pixels: int = flag(112 * 112, "pixels (an area) of each crop as it is shown")
    max_turns: int = flag(4, "model turns in a trajectory, so one zoom less than that")
    max_turn_tokens: int = flag(48, "tokens the model may write in one turn")
    max_tokens: int = flag(320, "tokens of a whole completion, observations included")
    max_plain_tokens: int = flag(0, "tokens of an answer without the tool, one turn (0: max_turn_tokens)")
    look_share: float = flag(1.0, "the first look has at most this fraction of the image's own pixels")
    batch: int = flag(256, "trajectories sampled at once; lower it where memory is short")
    engine: Literal["slots", "generate"] = flag(
        "slots", "slots: continuous batching, prompts shared (fast); generate: plain"
    )
    threads: int = flag(2, "CPU threads, and processes of a tiny model's rollout")
    quantize: Literal["", "4bit"] = flag("", "4bit: the language model's weights in NF4")
    tools: str = flag("zoom", "on offer: zoom, or zoom,rotate (see options/toolbox.py)")


LIMITS = tuple(each.name for each in fields(Limits))


def where_rows_are(config) -> dict:
    """Of a config with these flags, the arguments of `data.load`."""
    return {"root": config.root, "revision": config.revision, "allow_outside": config.allow_outside}


def look_budget(limits: Limits, size: tuple[int, int]) -> int:
    """Pixels that the first look at an image of this (width, height) may have.

    >>> look_budget(Limits(look_pixels=10**6, look_share=0.25), (640, 480))
    76800
    """
    if limits.look_share == 1:
        return limits.look_pixels
    width, height = size
    return min(limits.look_pixels, int(limits.look_share * width * height))


def rollout_limits(config: Limits) -> dict:
    """The limits as keyword arguments of `rollout`, which takes a model that is loaded already."""
    return {name: getattr(config, name) for name in LIMITS if name != "quantize"}


@dataclass(frozen=True)
class TrainConfig(Limits):
    """The flags of train.py."""

    MOST_USED: ClassVar = "model data steps out resume seed bonus prompts group lr"

    model: str = flag("tiny", "preset (qwen2.5-vl-3b, -7b, -32b, qwen3-vl-2b, -4b, -8b), folder or Hub name")
    data: str = flag("toy", "toy | toy-mixture | deepeyes | visualprobe | seal | a folder")
    root: str = flag("", "folder of the deepeyes, visualprobe or seal files (default: from the Hub)")
    revision: str = flag("", "of the data on the Hub: a commit (of a model: OWNER/MODEL@COMMIT)")
    allow_outside: bool = flag(False, "rows may name images outside the data set's folder")
    limit: int = flag(0, "questions to train on at most, 0 for all (a first run: 2000)")
    mix: str = flag("", "ratio between sources, such as vstar:47,chart:30,thinklite_eureka:23")
    steps: int = flag(120, "optimiser steps, each on fresh trajectories")
    prompts: int = flag(16, "questions per step")
    group: int = flag(8, "trajectories per question, compared with one another")
    tool: Literal["on", "off", "blank"] = flag("on", "off: no zoom on offer, text alone; blank: grey crops")
    bonus: Literal["conditional", "unconditional", "none"] = flag(
        "conditional", "pays for a crop if the answer is correct; unconditional: always; none: never"
    )
    crop_price: float = flag(
        0.0, "each crop of a correct answer costs this much; from step 1 on it can end all zooming"
    )
    crop_price_on: Literal["right", "all"] = flag("right", "all: crops of any answer cost")
    price_from: int = flag(0, "first steps in which crops cost nothing")
    curiosity: float = flag(0.0, "pays for a crop while under 30 %% of a step's trajectories zoom")
    temperature: float = flag(1.0, "of sampling; the trainer's logprobs use the same")
    lr: float = flag(1.5e-3, "learning rate of the LoRA weights")
    lr_schedule: Literal["linear", "constant"] = flag("linear", "constant: as in the paper")
    lora: int = flag(16, "rank of the LoRA on the language model's projections")
    optim: Literal["adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit"] = flag("adamw_torch", "optimiser")
    iterations: int = flag(1, "updates on the same trajectories; above 1 the clipping matters")
    clip_high: float = flag(0.2, "upper clip of the ratio (0.28: clip-higher)")
    advantage: Literal["std", "mean"] = flag("std", "std: over the group's standard deviation")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = flag("dapo", "how token losses are averaged")
    beta: float = flag(0.0, "weight of the KL term to the base; 0 needs no reference")
    protocol: Literal["ours", "paper"] = flag(
        "ours", "paper: the release's pixels, tokens, turns, prompts, group and mean over tokens"
    )
    guard: Literal["warn", "stop", "off"] = flag("warn", "when a health check fails")
    judge: str = flag("", URL_OF_A_JUDGE)
    micro_batch: int = flag(64, "trajectories per pass, rounded down to a divisor of a step's")
    seed: int = flag(0, "of images, order and sampling")
    seeds: str = flag("", "several runs, one after the other, and a page of all: 0,1,2")
    eval_size: int = flag(500, "held-out questions before and after training, 0 for none")
    save_every: int = flag(1, "steps between checkpoints; a kill loses at most this many")
    show_every: int = flag(10, "steps between groups that are stored with their images")
    out: str = flag("", "run folder (default runs/MODEL-DATA, numbered if taken)")
    resume: bool = flag(False, "go on with the run in --out, or begin it where there is none")
    plan: bool = flag(False, "print all flags, and the memory and time they need, and stop")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = flag(
        "none", "a tracker that gets each step's row, too"
    )


# What train.py starts from with other models than the tiny one ("big"), where nothing else is given.
BIG = {
    "data": "deepeyes", "steps": 80, "lr": 2e-5, "lr_schedule": "constant", "lora": 32, "micro_batch": 8,
    "save_every": 5, "eval_size": 200,
}  # fmt: skip
# The release's script, final_merged_v1v8_thinklite.sh: 16,384 visual tokens an image.
PAPER_LIMITS = {
    "look_pixels": 16384 * 28 * 28, "look_share": 1.0, "crop_pixels": 16384 * 28 * 28, "max_turns": 5,
    "max_turn_tokens": 10240, "max_tokens": 20480, "max_plain_tokens": 0,
}  # fmt: skip
# Its mean over tokens is taken in each micro-batch of four.
PAPER_TRAINING = PAPER_LIMITS | {
    "prompts": 256, "group": 16, "steps": 80, "lr_schedule": "constant", "loss_type": "bnpo",
    "micro_batch": 4,
}  # fmt: skip
DATASETS = ("toy", "toy-mixture", "deepeyes", "visualprobe", "seal")
# Of eval.py, by their kind; benchmarks/ says what is in them.
LOOKING = """
    vstar hrbench4k hrbench8k mme-realworld-lite mme-realworld treebench
    visualprobe-easy visualprobe-medium visualprobe-hard zoombench pope
"""
GROUNDING = "refcoco refcoco+ refcocog reasonseg"
REASONING = "mathvista mathverse mathvision wemath dynamath logicvista"
BENCHMARK_KINDS = (
    dict.fromkeys(LOOKING.split(), "looking")
    | dict.fromkeys(GROUNDING.split(), "grounding")
    | dict.fromkeys(REASONING.split(), "reasoning")
)
# The arms in which a question is asked. In "forced" the call is opened for the model and the box is its own:
# that tells *where* it zooms apart from *whether*.
ARMS = ("on", "off", "blank", "random", "swap", "oracle", "forced")
ENOUGH = 30  # held-out questions: fewer say little of a run
EVAL_SEED = 1_000_003  # the held-out questions are the same for every run


@dataclass(frozen=True)
class EvalConfig(Limits):
    """The flags of eval.py."""

    MOST_USED: ClassVar = "model data root arms limit repeats protocol judge ask out"

    model: str = flag("tiny", "preset, folder of a model, or checkpoint of a run (whose limits are used)")
    data: str = flag("toy", " | ".join((*DATASETS, "a folder", *BENCHMARK_KINDS)))
    root: str = flag("", "folder with the files of the benchmark or data set (default: the Hub's copy)")
    revision: str = flag("", "of the data on the Hub: a commit (of a model: OWNER/MODEL@COMMIT)")
    allow_outside: bool = flag(False, "rows may name images outside the data set's folder")
    arms: str = flag(",".join(ARMS), "which of these, separated by commas")
    split: Literal["test", "all"] = flag("test", "of a data set: what training leaves out, or all of it")
    limit: int = flag(500, "how many questions (benchmarks: 0 is all, their default)")
    seed: int = flag(EVAL_SEED, "picks the questions (on the toy: those that train.py holds out)")
    repeats: int = flag(1, "answers per question: avg@k and pass@k")
    temperature: float = flag(0.0, "0 is greedy (1 if --repeats is more than 1)")
    protocol: Literal["ours", "paper"] = flag(
        "ours", "paper: its pixels, tokens, turns, options' order, and its letter or judge"
    )
    official_order: bool = flag(False, "options in the benchmark's order, not shuffled")
    prompt: str = flag("", "file with another model's words: system prompt, a line ---, text with {question}")
    zoom: bool = flag(False, "offer the zoom to reasoning benchmarks, too")
    judge: str = flag("", URL_OF_A_JUDGE)
    ask: list[str] = field(
        default_factory=list,
        metadata={
            "help": 'an image and questions: --ask photo.jpg "What ...?" (no question: read line by line)',
            "nargs": "*",
        },
    )
    out: str = flag("", "folder of the results (default: runs/eval-MODEL-DATA)")


@dataclass(frozen=True)
class Preset:
    """A name for a model, and the limits to start from where nothing else is given."""

    source: str  # Hub name or folder
    limits: Limits


def big_limits(quantize: str = "", batch: int = 48) -> Limits:
    """Limits of a real model on one card: for Qwen2.5-VL a look of 1,000 visual tokens, crops of 400.

    A look of a quarter of an image's own pixels leaves something to find on small images, too: those of the
    V* rows have some 640 x 480 pixels, and would be shown whole. The authors trained such variants.
    A completion holds four crops, five turns of the usual length, and what their observations say.

    For Qwen3-VL they are the same pixels, so 765 and 306 of its larger tokens: what a first look shows, and
    what only a crop shows, is the same for both.
    """
    return Limits(
        look_pixels=1000 * 28 * 28,
        look_share=0.25,
        crop_pixels=400 * 28 * 28,
        max_turns=5,
        max_turn_tokens=384,
        max_tokens=3072,
        max_plain_tokens=2048,
        batch=batch,
        threads=8,
        quantize=quantize,
    )


PRESETS = {
    "tiny": Preset(str(Path(__file__).parent / "toy" / "base"), Limits()),
    "qwen2.5-vl-3b": Preset("Qwen/Qwen2.5-VL-3B-Instruct", big_limits()),
    "qwen2.5-vl-7b": Preset("Qwen/Qwen2.5-VL-7B-Instruct", big_limits("4bit", batch=32)),
    "qwen2.5-vl-32b": Preset("Qwen/Qwen2.5-VL-32B-Instruct", big_limits("4bit", batch=16)),
    # Eight heads of keys where the 3B has two: a slot takes three and four times as much.
    "qwen3-vl-2b": Preset("Qwen/Qwen3-VL-2B-Instruct", big_limits(batch=24)),
    "qwen3-vl-4b": Preset("Qwen/Qwen3-VL-4B-Instruct", big_limits(batch=16)),
    "qwen3-vl-8b": Preset("Qwen/Qwen3-VL-8B-Instruct", big_limits("4bit", batch=16)),
}


BIG_MODEL = "qwen2.5-vl-3b"


def big_values(kind) -> dict:
    """The values from which a script's flags start with a big model, where they are others than shown."""
    usual = {each.name: each.default for each in fields(kind)}
    if "model" not in usual:
        return {}
    values = asdict(PRESETS[BIG_MODEL].limits)
    if "lr" in usual:
        values |= BIG
    return {name: value for name, value in values.items() if usual.get(name, value) != value}


def usual_limits(model: str) -> Limits:
    """The limits of a preset, also by its name on the Hub; for any other model those of a big one."""
    source = model if Path(model).exists() else model.partition("@")[0]
    for name, preset in PRESETS.items():
        if source in (name, preset.source):
            return preset.limits
    return big_limits()


def fill_limits(config: Limits, given: set[str]) -> Limits:
    """The config with the limits that were not given: as in the run that wrote the checkpoint, else as usual.

    config: any whose `model` is a preset, folder, Hub name, or a checkpoint inside a run folder.
    """
    usual = asdict(usual_limits(config.model))
    usual["threads"] = min(usual["threads"], os.cpu_count() or 1)
    run = {} if config.model in PRESETS else run_flags(Path(config.model))
    if run:  # it may be older than these flags
        usual |= {"look_share": 1.0, "max_plain_tokens": 0}
        taken = [f"{name} {run[name]}" for name in LIMITS if name in run and name not in given]
        print(f"limits of {config.model}, as in its run: {', '.join(taken)}")
    values = {name: run.get(name, usual[name]) for name in LIMITS if name not in given}
    return replace(config, **values)


def fill_big(config: TrainConfig, given: set[str]) -> TrainConfig:
    """The config with the values of `BIG` where none was given, for any model but the tiny one."""
    if config.model == "tiny":
        return config
    return replace(config, **{name: value for name, value in BIG.items() if name not in given})


def run_flags(model: Path) -> dict:
    """The flags of the run that wrote a checkpoint or a merged model; {} for any other model."""
    try:
        own = model / "args.json"  # a run's folder stands for its newest checkpoint
        run = read_json(own if own.exists() else model.parent / "args.json")
    except ValueError as error:
        fail(str(error))
    run.pop("threads", None)  # of the machine, not of the run
    if not (model / "adapter_config.json").exists():
        run.pop("quantize", None)  # merged weights are whole
    return run


# Flags of before, at the value that changed nothing. A run that used another one can't go on.
GONE = {"mask_overlong": False, "refill": False, "merge": False}


def as_now(stored: dict) -> dict:
    """The flags of an older run's args.json by their names of now.

    >>> as_now({"bonus": "priced_all", "call_price": 0.1, "merge": False})
    {'bonus': 'none', 'crop_price': 0.1, 'crop_price_on': 'all'}
    >>> as_now({"bonus": "none", "call_price": 0.05, "refill": True})
    {'bonus': 'none', 'refill': True, 'crop_price': 0.0}
    """
    flags = {name: value for name, value in stored.items() if GONE.get(name, ...) != value}
    if "call_price" in flags:
        price = flags.pop("call_price")
        priced = flags["bonus"] in ("priced", "priced_all")
        flags["crop_price"] = price if priced else 0.0
        if priced:
            flags["crop_price_on"] = "all" if flags["bonus"] == "priced_all" else "right"
            flags["bonus"] = "none"
    return flags


# --------------------------------------------------------------------------------------------------
# Reading the command line.


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown, the commands of a script's docstring left as they are written, one name a flag."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=110)

    def _get_help_string(self, action) -> str:
        is_set = action.default not in ("", None, []) and action.default is not False
        return super()._get_help_string(action) if is_set else action.help

    def _format_action_invocation(self, action) -> str:
        if not action.option_strings or action.dest == "help":
            return super()._format_action_invocation(action)
        is_switch = action.nargs == 0 or isinstance(action.default, bool)
        values = "" if is_switch else action.metavar or action.dest.upper()
        if action.choices:
            values = " | ".join(filter(None, action.choices))
        return f"{action.option_strings[0]} {values}"


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
NOW = {"call_price": "--crop_price", "merge": "python model.py CHECKPOINT --out FOLDER"}  # flags of before


def hint(unknown: list[str], known) -> str:
    """The flag that was meant by one of another program, or by a typo. known: fields of the config."""
    names = [field.name for field in known]
    for word in unknown:
        given = word.lstrip("-").split("=")[0].replace("-", "_")
        if not word.startswith("--") or not given:
            continue
        if given in ("device", "gpu", "gpu_id", "gpus"):
            return GPU
        if given in NOW:
            return f"now it is {NOW[given]}"
        meant = ELSEWHERE.get(given)
        close = [meant] if meant in names else get_close_matches(given, names, 1, 0.75)
        if close:
            return f"did you mean --{close[0]}?"
    return "see --help"


def check_at_least(least: float, config: object, names: str) -> None:
    """End the script if one of these flags is smaller, or no number at all."""
    for name in names.split():
        if not least <= getattr(config, name) < 2**32:  # false for NaN, too
            fail(f"--{name} must be at least {least}")


def check_limits(config: Limits) -> None:
    """End the script for a limit that makes no sense."""
    check_at_least(1, config, "look_pixels crop_pixels max_turns max_turn_tokens max_tokens batch threads")
    check_at_least(0, config, "max_plain_tokens")
    if not 0 < config.look_share <= 1:
        fail(f"--look_share {config.look_share} must be above 0, and 1 at most")


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
    """Read the flags of a dataclass; returns its config, and the names of those that were given."""
    note = f"big: of any model but the tiny one; here {BIG_MODEL}'s" if big_values(kind) else ""
    if "plan" in kind.__dataclass_fields__:
        note += " (--plan prints what is in force)"
    settings = {"description": doc, "formatter_class": Help, "allow_abbrev": False}
    settings["usage"] = "%(prog)s [flags]"
    parser = HfArgumentParser(kind, epilog=note, **settings)
    arrange_help(parser, kind)
    parser.error = fail_with_remedy  # one line, where argparse shows the usage of fifty flags first
    # A file train.args beside train.py would be read as flags, silently
    config, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        fail(f"unrecognized arguments: {' '.join(unknown)} ({hint(unknown, fields(kind))})")
    flags = [word[2:].split("=")[0] for word in argv if word.startswith("--")]
    return config, {flag.replace("-", "_") for flag in flags}


def fail_with_remedy(message: str):
    """End the script with argparse's own words, and where a value is one of before, with what it is now."""
    if "--bonus" in message and "priced" in message.partition("(")[0]:
        message += "; crops have a price with --bonus none --crop_price 0.05 (and --crop_price_on all)"
    fail(message)


def arrange_help(parser: argparse.ArgumentParser, kind) -> None:
    """Sort the flags of --help into groups, the most used first, and say what they are for a big model."""
    big = big_values(kind)
    flags = {action.dest: action for action in parser._actions if action.dest in kind.__dataclass_fields__}
    titles = dict.fromkeys(flags, RUN)
    for title, names in GROUPS.items():
        titles |= dict.fromkeys(names.split(), title)
    first = getattr(kind, "MOST_USED", "").split()
    titles |= dict.fromkeys(first, MOST_USED)
    groups = {title: parser.add_argument_group(title) for title in (MOST_USED, RUN, *GROUPS)}
    for name in (*first, *(name for name in flags if name not in first)):
        groups[titles[name]]._group_actions.append(flags[name])
        parser._optionals._group_actions.remove(flags[name])  # argparse has no other way to move a flag
        if name in big:
            flags[name].help += f" (big: {big[name]})"


def flags_text(config: Limits) -> str:
    """All flags in force, as they would be typed, each in a line."""
    lines = []
    for name, value in asdict(config).items():
        if value is not False and value not in ("", []):
            lines.append(f"--{name} {value}")
    return "\n".join(lines)


def is_name(revision: str) -> bool:
    """Is it a branch, a tag or nothing, whose commit can change?

    >>> is_name("main"), is_name("1" * 40)
    (True, False)
    """
    return len(revision) < 40


def run_command(main, read_config) -> None:
    """Run a script: mistakes of the user end in one line, and so does Ctrl-C."""
    try:
        main(read_config(sys.argv[1:]))
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped; run the same command again (stored results are used)")
        sys.exit(130)
