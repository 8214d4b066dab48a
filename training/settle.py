"""The flags of train.py, settled once: given, of a run that goes on, or usual for the model; checked before
anything heavy is imported."""

import os
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from config import (
    PAPER_TRAINING,
    TrainConfig,
    as_now,
    check_at_least,
    check_data_name,
    check_limits,
    fill_big,
    fill_limits,
    is_name,
    parse,
)
from safe.files import fail, read_json

WORLD = int(os.environ.get("WORLD_SIZE", 1))  # processes
MAY_CHANGE = {"steps", "judge", "report_to", "batch", "micro_batch"}  # when a run goes on


def command_config(doc: str) -> TrainConfig:
    """The config of this very command, and the environment that torch wants to find when it is imported.

    doc: of train.py. With --seeds the runs are done here, and the process ends.
    """
    config = read_config(sys.argv[1:], doc)
    if config.seeds and not config.plan:
        from training.seeds import run_seeds

        sys.exit(run_seeds(config, sys.argv))
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    # With no core to spare, threads that spin while they wait take the cores from one another.
    if config.threads * WORLD >= (os.cpu_count() or 1):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if WORLD == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process, one GPU
    return config


def read_config(argv: list[str], doc: str = "", world: int = WORLD) -> TrainConfig:
    """Parse, settle and check the flags. Exits with 2 and one clear line. world: processes."""
    given_config, given = parse(TrainConfig, argv, doc)
    return settle(given_config, given, world)


def settle(config: TrainConfig, given: set[str], world: int) -> TrainConfig:
    """The flags in force: those of the run that goes on, or those given and the model's usual ones."""
    if config.seeds:
        check_seeds(config, given, world)
    if config.resume and has_run(config.out):
        config = resumed_config(config, given)
        check_training(config, world)
        return config
    if has_run(config.out):
        fail(f"{config.out} holds a run already; go on with --resume, or give another --out")
    config = fill_big(fill_limits(config, given), given)
    if config.protocol == "paper":
        usual = {name: value for name, value in PAPER_TRAINING.items() if name not in given}
        config = replace(config, **usual)
    if "micro_batch" not in given:  # the largest up to the default that divides a step
        trajectories = config.prompts * config.group // world
        sizes = range(1, config.micro_batch + 1)
        fitting = [size for size in sizes if trajectories % size == 0]
        config = replace(config, micro_batch=max(fitting, default=1))
    check_training(config, world)
    return config


def has_run(out: str) -> bool:
    """Does the folder hold a run already?"""
    return bool(out) and (Path(out) / "args.json").exists()


def resumed_config(config: TrainConfig, given: set[str]) -> TrainConfig:
    """The config of the run in --out, from its args.json, but for those that may change and were given; the
    others may be given if they are the run's own, so that a command can be run again as it is."""
    file = Path(config.out) / "args.json"
    try:
        stored = read_json(file)
    except ValueError as error:
        fail(str(error))
    if not isinstance(stored, dict):
        fail(f"{file} holds no flags")
    stored = as_now(stored)
    check_stored(stored, file)
    # Counts only if it is given now: answers and a key would go there
    stored.pop("judge", None)
    stored = asdict(TrainConfig()) | stored  # a run of before may lack a flag
    differ = []
    if is_name(config.revision):  # the run has the commit that this stood for when it began
        given = given - {"revision"}
    for name in sorted(given - MAY_CHANGE - {"resume", "out"}):
        if getattr(config, name) != stored[name]:
            differ.append(f"--{name} {stored[name]} (not {getattr(config, name)})")
    if differ:
        fail(f"the run in {config.out} has {', '.join(differ)}: drop it, or give another --out")
    changed = {name: getattr(config, name) for name in MAY_CHANGE & given}
    return TrainConfig(**stored | changed | {"out": config.out, "resume": True})


def check_stored(stored: dict, file: Path) -> None:
    """End the script for flags in a run's args.json that are none, or of another type."""
    usual = asdict(TrainConfig())
    for name, value in stored.items():
        if name not in usual:
            fail(f"{file} has the flag {name!r}, which is none of this script")
        wanted = type(usual[name])
        is_number = wanted is float and type(value) is int
        if type(value) is not wanted and not is_number:
            fail(f"{file}: {name} is {value!r}, and should be of type {wanted.__name__}")


def check_seeds(config: TrainConfig, given: set[str], world: int) -> None:
    """End the script for --seeds that can't be run one after the other."""
    if "seed" in given:
        fail("--seed and --seeds: give one of them")
    if world > 1:
        fail("--seeds starts its runs itself: with torchrun loop over --seed")
    if has_run(config.out):
        fail(f"{config.out} is a run; with --seeds --out is what the runs' names begin with")
    seeds = config.seeds.split(",")
    for word in seeds:
        if not word.isdecimal() or int(word) >= 2**32:
            fail(f"--seeds are numbers with commas between, such as 0,1,2, not {config.seeds}")
    if len(set(map(int, seeds))) < len(seeds):
        fail(f"--seeds {config.seeds}: give each once")


def check_training(config: TrainConfig, world: int) -> None:
    """End the script if train.py's config don't fit one another. world: processes."""
    check_at_least(1, config, "steps prompts micro_batch iterations lora save_every show_every")
    check_limits(config)
    check_at_least(0, config, "lr beta seed eval_size clip_high crop_price price_from curiosity limit")
    check_data_name(config.data)
    if config.resume and not config.out and not config.seeds:
        fail("--resume goes on with the run in --out: give one")
    tracker = find_spec(config.report_to)
    if config.report_to != "none" and not (tracker and tracker.origin):  # a folder has no origin
        fail(f"--report_to {config.report_to} needs a package: pip install {config.report_to}")
    if config.group < 2:
        fail("--group must be at least 2: an advantage is a comparison within the group")
    if config.prompts % world:
        fail(f"--prompts {config.prompts} is no multiple of the {world} processes: groups stay whole")
    trajectories = config.prompts * config.group // world
    if trajectories % config.micro_batch:
        fail(f"--micro_batch {config.micro_batch} must divide a process's {trajectories} trajectories")
    if config.save_every % config.iterations:
        fail("--save_every must be a multiple of --iterations: trajectories are not saved")
    if not config.temperature > 0:
        fail("--temperature must be above 0: equal trajectories teach nothing")
    if (Path(config.model) / "adapter_config.json").exists():
        fail(f"{config.model} is a LoRA checkpoint; start from a model, or go on with --resume")


def check_choices(config: TrainConfig) -> None:
    """Raise ValueError for a model or a tool that there is not, or pixels that the model can't be shown: by
    small files, before large ones are fetched. The plan of a preset needs no file."""
    from engine.families import family_of_preset
    from engine.inputs import pixel_budgets
    from machine.row_estimate import check_crops
    from model import find_model, load_processor
    from options.toolbox import named

    named(config.tools)
    check_crops(config)
    if config.plan and family_of_preset(config.model):
        return
    processor = load_processor(find_model(config.model, weights=False))
    pixel_budgets(processor, config.look_pixels, config.crop_pixels)
