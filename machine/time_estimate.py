"""How long a training step takes, before anything is loaded: from what this machine was measured to do.

The floor of a step is the time that its matrix products and its reads of memory take at the measured speed.
Our engines take a multiple of the floor, which bench.py measures ("times the floor" in docs/speed.md).
"""

import time
from dataclasses import dataclass

import torch

from config import TrainConfig
from engine.families import FAMILIES
from machine.memory_estimate import NF4, PROMPT, sizes
from model import config_of

# Times the floor, rollout and update. On a CPU measured at the widths of the 3B; on a GPU by nobody yet.
MULTIPLES = {"cpu": (1.7, 1.0), "cuda": (3.0, 3.0)}
# The tiny model's operations are so small that launching them takes the time. A trajectory takes as long as
# this many small products (64 x 128 by 128 x 384, one thread) in a rollout, and in an update.
SMALL_PRODUCTS = (105, 70)
# A guess of what a big model's trajectories are like, as in the paper's curves halfway through.
WRITTEN = 240  # tokens of a trajectory
LONGEST = 2.0  # times as many, in the longest one
CROPS = 1.0  # of a trajectory
OBSERVATION = 40  # tokens of the text about a crop
# Cards by their data sheets: memory, and products of bfloat16 (dense).
CARDS = {"RTX 3090": (0.94e12, 71e12), "A100": (2.0e12, 312e12), "H100": (3.35e12, 989e12)}
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


def device_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """Measured in a second or two."""
    on_gpu = device.type == "cuda"
    big = torch.empty(2**27 if on_gpu else 2**25, device=device)
    side = 8192 if on_gpu else 2048
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    few = torch.randn(64, 128, device=device)
    weights = torch.randn(128, 384, device=device)

    def best(work, times: int = 1) -> float:
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            for _ in range(times):
                work()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return min(seconds) / times

    copying = best(big.clone)
    multiplying = best(lambda: matrix @ matrix)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = best(lambda: torch.nn.functional.silu(few @ weights), times=3000)
    torch.set_num_threads(threads)
    return Speed(2 * big.nbytes / copying, 2 * side**3 / multiplying, small)


def usual_work(config: TrainConfig, model_config, world: int = 1) -> Work:
    """What a big model's step usually computes, in one of `world` processes."""
    area = FAMILIES[model_config.model_type].token_area
    look = config.look_pixels // area
    crop = config.crop_pixels // area
    prompts = config.prompts // world
    trajectories = prompts * config.group
    crops = trajectories * min(CROPS, config.max_turns - 1)
    rounds = max(1.0, trajectories / config.batch)
    return Work(
        patches=4 * (prompts * look + crops * crop),
        given=prompts * (look + PROMPT) + crops * (crop + OBSERVATION),
        written=trajectories * WRITTEN,
        steps=rounds * min(WRITTEN * LONGEST, config.max_tokens),
    )


def floors(work: Work, model_config, speed: Speed, size: int, quantize: str = "") -> dict[str, float]:
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
    weight_bytes = count["matrices"] * (NF4 if quantize else size) + head * size
    loading = work.steps * weight_bytes / speed.bytes_s
    computing = 2 * weights * work.written / speed.ops_s
    reading = 2 * weights * work.given / speed.ops_s
    seeing = 2 * count["vision"] * work.patches / speed.ops_s
    tokens = work.given + work.written
    return {
        "rollout": seeing + reading + max(loading, computing),
        "update": 4 * weights * tokens / speed.ops_s,
    }


def step_seconds(config: TrainConfig, speed: Speed, device: str, world: int = 1) -> dict[str, float]:
    """The seconds that a rollout and an update usually take. device: "cpu" or "cuda"."""
    if config.model == "tiny":
        trajectories = config.prompts * config.group // world
        seconds = [trajectories * products * speed.small_s for products in SMALL_PRODUCTS]
        return dict(zip(("rollout", "update"), seconds))
    model_config = config_of(config.model)
    work = usual_work(config, model_config, world)
    found = floors(work, model_config, speed, 2 if device == "cuda" else 4, config.quantize)
    return {phase: found[phase] * times for phase, times in zip(found, MULTIPLES[device])}


def time_text(config: TrainConfig, speed: Speed, device: str, world: int = 1) -> str:
    """Seconds a step and hours a run, in a line, and how far that can be trusted."""
    seconds = sum(step_seconds(config, speed, device, world).values())
    run = seconds * config.steps
    length = f"{run / 3600:.1f} hours" if run > 5400 else f"{run / 60:.0f} minutes"
    basis = "calibrated on 2 cores of an EPYC"
    if device == "cuda":
        basis = "of no card yet: taken as 3 times what its arithmetic allows, so a guess"
    return f"about {seconds:.2g} s a step, {length} for {config.steps} steps ({basis}), without scoring"


def speed_here(threads: int) -> tuple[Speed, str]:
    """The speed of the device at hand, measured now, and its kind: "cpu" or "cuda"."""
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        return device_speed(torch.device("cuda"), torch.bfloat16), "cuda"
    return device_speed(torch.device("cpu"), torch.float32), "cpu"


def time_here(config: TrainConfig, world: int = 1) -> str:
    """`time_text` for the device at hand; for a big model without a GPU, guesses for three cards."""
    if config.model != "tiny" and not torch.cuda.is_available():
        return cards_text(config, world)
    speed, device = speed_here(config.threads)
    return f"on this {device}: {time_text(config, speed, device, world)}"


def cards_text(config: TrainConfig, world: int = 1) -> str:
    """The hours of a run on cards that are not here."""
    hours = []
    for name, (bytes_s, ops_s) in CARDS.items():
        seconds = step_seconds(config, Speed(bytes_s, ops_s, 0.0), "cuda", world)
        hours.append(f"{name} {sum(seconds.values()) * config.steps / 3600:.1f}")
    basis = f"guesses: {MULTIPLES['cuda'][0]:.0f} times what the arithmetic allows"
    return f"hours for {config.steps} steps: {', '.join(hours)} ({basis}), without scoring"
