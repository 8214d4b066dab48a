"""How long a training step takes, before anything is loaded: from what this machine was measured to do.

A floor is what the machine's copies and matrix products alone would take, by arithmetic. Our engines take a
multiple of it, which bench.py measures ("times the floor" in docs/speed.md).
"""

import time
from dataclasses import dataclass

import torch

from engine.families import FAMILIES
from machine.memory_estimate import sizes
from model import config_of

# Times the floor, rollout and update: on a CPU measured at the 3B's widths; on a GPU by nobody yet.
MULTIPLES = {
    "cpu": (1.7, 1.0),
    "cuda": (3.0, 3.0),
}
# The tiny model's operations are so small that a CPU's time goes into launching them. So many small products
# (64 x 128 by 128 x 384, one thread) take as long as a trajectory does in a rollout, and in an update.
SMALL_PRODUCTS = (105, 70)
# A trajectory's tokens, its crops, and how many times as long the longest is. The tiny model's as it trains;
# of others a guess, as in the paper's curves halfway through.
TINY_LENGTHS = (30, 1.2, 1.6)
BIG_LENGTHS = (240, 1.0, 2.0)
TINY_PROMPT = 20  # tokens beside the look
BIG_PROMPT = 500
OBSERVATION = 40  # tokens of the text about a crop
REPEATS = 5  # of a measurement; the best counts


@dataclass
class Speed:
    """What a device was measured to do."""

    bytes_s: float  # of a large copy, read and write counted
    ops_s: float  # of a large matrix product
    small_s: float  # seconds of a small one, see SMALL_PRODUCTS


@dataclass
class Work:
    """What a step computes, in one process."""

    patches: float  # of all images
    given: float  # tokens of prompts (once a group) and observations
    written: float  # tokens, all trajectories together
    steps: float  # of decoding


def device_speed(device, dtype) -> Speed:
    """Measured in a second or two; the best of five counts."""
    cuda = device.type == "cuda"
    big = torch.empty(2**27 if cuda else 2**25, device=device)
    side = 8192 if cuda else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)

    def best(work, times: int = 1) -> float:
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            for _ in range(times):
                work()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds) / times

    copying = best(big.clone)
    multiplying = best(lambda: a @ a)
    few = torch.randn(64, 128, device=device)
    more = torch.randn(128, 384, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = best(lambda: torch.nn.functional.silu(few @ more), times=3000)
    torch.set_num_threads(threads)
    return Speed(2 * big.nbytes / copying, 2 * side**3 / multiplying, small)


def usual_work(config, model_config, world: int = 1) -> Work:
    """What a step with these config (of train.py) usually computes, in one process."""
    tiny = config.model == "tiny"
    written, crops, spread = TINY_LENGTHS if tiny else BIG_LENGTHS
    area = FAMILIES[model_config.model_type].token_area
    looks = config.prompts // world
    trajectories = looks * config.group
    all_crops = trajectories * min(crops, config.max_turns - 1)
    look_tokens = config.look_pixels // area
    crop_tokens = config.crop_pixels // area
    prompt = look_tokens + (TINY_PROMPT if tiny else BIG_PROMPT)
    rounds = max(1.0, trajectories / config.batch)
    return Work(
        patches=4 * (looks * look_tokens + all_crops * crop_tokens),
        given=looks * prompt + all_crops * (crop_tokens + OBSERVATION),
        written=trajectories * written,
        steps=rounds * min(written * spread, config.max_tokens),
    )


def floors(
    work: Work,
    model_config,
    speed: Speed,
    size: int,
    quantize: str = "",
) -> dict[str, float]:
    """Seconds of a rollout and an update by arithmetic. size: bytes of a number.

    Weights are read once a decode step, and each token costs two operations per weight. Attention is left
    out, and the vocabulary's matrix is counted for every token, so that an update that scores few of them can
    be faster. The update goes forward and backward (to the inputs: the weights are frozen) over each distinct
    token; the images have been encoded in the rollout.
    """
    count = sizes(model_config)
    text = model_config.text_config
    head = text.vocab_size * text.hidden_size
    weights = count["matrices"] + head
    # NF4, double quantised: 4.13 bits.
    loaded = count["matrices"] * (0.516 if quantize else size) + head * size
    loading = work.steps * loaded / speed.bytes_s
    computing = 2 * weights * work.written / speed.ops_s
    reading = 2 * weights * work.given / speed.ops_s
    seeing = 2 * count["vision"] * work.patches / speed.ops_s
    tokens = work.given + work.written
    return {
        "rollout": seeing + reading + max(loading, computing),
        "update": 4 * weights * tokens / speed.ops_s,
    }


def step_seconds(config, speed: Speed, device: str, world: int = 1) -> dict[str, float]:
    """The seconds that a rollout and an update usually take. device: "cpu" or "cuda"."""
    if config.model == "tiny" and device == "cpu":
        trajectories = config.prompts * config.group // world
        rollout, update = SMALL_PRODUCTS
        each = trajectories * speed.small_s
        return {"rollout": rollout * each, "update": update * each}
    model_config = config_of(config.model)
    size = 2 if device == "cuda" and config.model != "tiny" else 4
    work = usual_work(config, model_config, world)
    found = floors(work, model_config, speed, size, config.quantize)
    for phase, multiple in zip(found, MULTIPLES[device], strict=True):
        found[phase] *= multiple
    return found


def time_text(config, speed: Speed, device: str, world: int = 1) -> str:
    """Seconds a step and hours a run, in a line, and how far that can be trusted."""
    seconds = sum(step_seconds(config, speed, device, world).values())
    run = seconds * config.steps
    length = f"{run / 3600:.1f} hours" if run > 5400 else f"{run / 60:.0f} minutes"
    basis = "calibrated on 2 cores of an EPYC"
    if device == "cuda":
        basis = "of no card yet: taken as 3 times what its arithmetic allows, so a guess"
    return f"about {seconds:.2g} s a step, {length} for {config.steps} steps ({basis}), without scoring"


def time_here(config, world: int = 1) -> str:
    """`time_text` for the device at hand, measured now."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(config.threads)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    speed = device_speed(device, dtype)
    return f"on this {device.type}: {time_text(config, speed, device.type, world)}"
