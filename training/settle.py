from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from config import check_at_least, check_data_name, fill_big, fill_limits, is_name
from safe.files import fail, read_json


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
    check_at_least(1, knobs, "steps prompts micro_batch iterations lora save_every show_every threads")
    check_at_least(1, knobs, "look_pixels crop_pixels max_turns max_turn_tokens max_tokens batch")
    check_at_least(0, knobs, "lr beta seed eval_size clip_high curiosity call_price price_from limit")
    check_data_name(knobs.data)
    if knobs.resume and not knobs.out and not knobs.seeds:
        fail("--resume goes on with the run in --out: give one")
    tracker = find_spec(knobs.report_to)
    if knobs.report_to != "none" and not (tracker and tracker.origin):  # a folder has no origin
        fail(f"--report_to {knobs.report_to} needs a package: pip install {knobs.report_to}")
    if knobs.group < 2:
        fail("--group must be at least 2: an advantage is a comparison within the group")
    if knobs.prompts % world:
        fail(f"--prompts {knobs.prompts} is no multiple of the {world} processes: groups stay whole")
    trajectories = knobs.prompts * knobs.group // world
    if trajectories % knobs.micro_batch:
        fail(f"--micro_batch {knobs.micro_batch} must divide a process's {trajectories} trajectories")
    if knobs.save_every % knobs.iterations:
        fail("--save_every must be a multiple of --iterations: trajectories are not saved")
    if not knobs.temperature > 0:
        fail("--temperature must be above 0: equal trajectories teach nothing")
    if (Path(knobs.model) / "adapter_config.json").exists():
        fail(f"{knobs.model} is a LoRA checkpoint; start from a model, or go on with --resume")


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


from pathlib import Path

from engine.families import family_of_preset
from options.toolbox import named


def check_choices(knobs) -> None:
    """Raise ValueError for a model or a tool that there is not, or pixels that the model can't be shown: by
    small files, before large ones are fetched. knobs: of train.py; the plan of a preset needs no file."""
    from engine.inputs import pixel_budgets
    from model import load_processor, resolve

    named(knobs.tools)
    if knobs.plan and family_of_preset(knobs.model):
        return
    processor = load_processor(resolve(knobs.model, weights=False))
    pixel_budgets(processor, knobs.look_pixels, knobs.crop_pixels)
