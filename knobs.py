"""What every script needs from the command line: knobs, presets, limits, and errors in one line.

Nothing heavy is imported here: a mistyped flag must not cost ten seconds.
"""

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import textwrap
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

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


def settle_training(knobs, given: set[str], world: int):
    """train.py's knobs in force: those of the run that goes on, or those given and the model's usual ones.

    Ends the script where they don't fit one another. world: processes.
    """
    if knobs.seeds:
        check_seeds(knobs, given, world)
    if knobs.resume and has_run(knobs.out):
        knobs = resumed_knobs(knobs, given, may_change={"steps", "judge", "report_to"})
        check_training(knobs, world)
        return knobs
    if has_run(knobs.out):
        fail(f"{knobs.out} holds a run already; go on with --resume, or give another --out")
    fill_limits(knobs, given)
    fill_big(knobs, given)
    if "micro_batch" not in given:  # the largest up to the default that divides a step
        trajectories = knobs.prompts * knobs.group // world
        sizes = range(1, knobs.micro_batch + 1)
        knobs.micro_batch = max((n for n in sizes if trajectories % n == 0), default=1)
    check_training(knobs, world)
    return knobs


def check_seeds(knobs, given: set[str], world: int) -> None:
    """End the script for --seeds that can't be run one after the other."""
    if "seed" in given:
        fail("--seed and --seeds: give one of them")
    if world > 1:
        fail("--seeds starts its runs itself: with torchrun loop over --seed")
    if has_run(knobs.out):
        fail(f"{knobs.out} is a run; with --seeds --out is what the runs' names begin with")
    seeds = knobs.seeds.split(",")
    for word in seeds:
        if not word.isdecimal() or int(word) >= 2**32:
            fail(f"--seeds are numbers with commas between, such as 0,1,2, not {knobs.seeds}")
    if len(set(map(int, seeds))) < len(seeds):
        fail(f"--seeds {knobs.seeds}: give each once")


def check_training(knobs, world: int) -> None:
    """End the script if train.py's knobs don't fit one another. world: processes."""
    check_at_least(
        1, knobs, "steps prompts micro_batch iterations lora save_every show_every threads"
    )
    check_at_least(
        1, knobs, "look_pixels crop_pixels max_turns max_turn_tokens max_tokens batch"
    )
    check_at_least(
        0, knobs, "lr beta seed eval_size clip_high curiosity call_price price_from limit"
    )
    check_data_name(knobs.data)
    if knobs.resume and not knobs.out and not knobs.seeds:
        fail("--resume goes on with the run in --out: give one")
    tracker = find_spec(knobs.report_to)
    if knobs.report_to != "none" and not (tracker and tracker.origin):  # a folder has no origin
        fail(f"--report_to {knobs.report_to} needs a package: pip install {knobs.report_to}")
    if knobs.group < 2:
        fail("--group must be at least 2: an advantage is a comparison within the group")
    if knobs.prompts % world:
        fail(
            f"--prompts {knobs.prompts} is no multiple of the {world} processes: groups stay whole"
        )
    trajectories = knobs.prompts * knobs.group // world
    if trajectories % knobs.micro_batch:
        fail(
            f"--micro_batch {knobs.micro_batch} must divide a process's {trajectories} trajectories"
        )
    if knobs.save_every % knobs.iterations:
        fail("--save_every must be a multiple of --iterations: trajectories are not saved")
    if not knobs.temperature > 0:
        fail("--temperature must be above 0: equal trajectories teach nothing")
    if (Path(knobs.model) / "adapter_config.json").exists():
        fail(f"{knobs.model} is a LoRA checkpoint; start from a model, or go on with --resume")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown, and the commands of a script's docstring left as they are written."""


def fail(message: str, code: int = 2):
    """One clear line, and the end. Exit code 2: a mistake of the user, before anything long starts."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(code)


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


def has_run(out: str) -> bool:
    """Does the folder hold a run already?"""
    return bool(out) and (Path(out) / "args.json").exists()


def resumed_knobs(knobs, given: set[str], may_change: set[str]):
    """The knobs of the run in --out, from its args.json, but for those that may change and were given; the
    others may be given if they are the run's own, so that a command can be run again as it is."""
    kind = type(knobs)
    file = Path(knobs.out) / "args.json"
    try:
        stored = read_json(file)
    except ValueError as error:
        fail(str(error))
    check_stored(kind, stored, file)
    # Counts only if it is given now: answers and a key would go there
    stored.pop("judge", None)
    stored = asdict(kind()) | stored  # a run of before may lack a knob
    differ = []
    if is_name(knobs.revision):  # the run has the commit that this stood for when it began
        given = given - {"revision"}
    for name in sorted(given - may_change - {"resume", "out"}):
        if getattr(knobs, name) != stored[name]:
            differ.append(f"--{name} {stored[name]} (not {getattr(knobs, name)})")
    if differ:
        fail(f"the run in {knobs.out} has {', '.join(differ)}: drop it, or give another --out")
    changed = {name: getattr(knobs, name) for name in may_change & given}
    return kind(**stored | changed | {"out": knobs.out, "resume": True})


def is_name(revision: str) -> bool:
    """Is it a branch, a tag or nothing, whose commit can change?

    >>> is_name("main"), is_name("1" * 40)
    (True, False)
    """
    return len(revision) < 40


def check_stored(kind, stored, file: Path) -> None:
    """End the script for knobs in a run's args.json that are none, or of another type."""
    if not isinstance(stored, dict):
        fail(f"{file} holds no knobs")
    usual = asdict(kind())
    for name, value in stored.items():
        if name not in usual:
            fail(f"{file} has the knob {name!r}, which is none of this script")
        wanted = type(usual[name])
        is_number = wanted is float and type(value) is int
        if type(value) is not wanted and not is_number:
            fail(f"{file}: {name} is {value!r}, and should be of type {wanted.__name__}")


def read_json(file: Path) -> dict:
    """The content of a .json file; {} where there is none. Raises ValueError that names a broken file."""
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def write_json(file: Path, content) -> None:
    """Write a .json file."""
    text = json.dumps(strict(content), indent=1, allow_nan=False)
    write_whole(file, text + "\n")


def strict(content):
    """The same with None for what JSON has no word for.

    >>> strict({"loss": float("nan"), "boxes": [(1.0, float("inf"))]})
    {'loss': None, 'boxes': [[1.0, None]]}
    """
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    return content


def write_whole(file: Path, text: str) -> None:
    """Write a file at once or not at all: a kill in the middle must not cost what was there before. A link in
    its place is replaced, not followed."""
    number, half = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as half_written:
            half_written.write(text)
        os.chmod(half, 0o644)
        os.replace(half, file)
    except BaseException:
        Path(half).unlink(missing_ok=True)
        raise


def run_command(main, read_knobs) -> None:
    """Run a script: mistakes of the user end in one line, and so does Ctrl-C."""
    try:
        main(read_knobs(sys.argv[1:]))
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped; run the same command again (stored results are used)")
        sys.exit(130)
