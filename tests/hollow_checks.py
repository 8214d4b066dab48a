"""What the parts of a training step hold at full depth, beside machine/memory_estimate.py.

python tests/hollow_checks.py MODEL     # prints GiB by part: [counted, estimated]
"""

import gc
import json
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hollow_card
import torch

CARD = hollow_card.install(gib=2000)
sys.path.insert(0, str(Path(__file__).parent.parent))

from PIL import Image

from config import TrainConfig
from engine.lora import master_lora, sampling_mode
from engine.shared_prefix import shared_prefix_logprobs, use_shared_prefix
from engine.slots import Chunk, SlotEngine
from machine import memory_estimate
from model import add_lora, config_of, load_model, prepare_libraries
from rollout import Trajectory
from training.base import copied
from training.settle import read_config

GIB = 2**30
WORD = 100  # any id


def held() -> float:
    gc.collect()
    return CARD.used / GIB


def peak_of(work) -> float:
    """GiB above what is held before."""
    before = held()
    CARD.peak = CARD.used
    work()
    return CARD.peak / GIB - before


class Lengths:
    """The longest prompts and completions of a config, in ids and images."""

    def __init__(self, config: TrainConfig, processor):
        self.family = processor.family
        self.pad = processor.image_token_id
        self.look = self.image(config.look_pixels)
        self.crop = self.image(config.crop_pixels)
        self.prompt = [WORD] * memory_estimate.PROMPT + self.tokens(self.look)
        self.most = max(config.max_tokens, config.max_plain_tokens)
        self.crops = min(config.max_turns - 1, 3)

    def image(self, pixels: int) -> Image.Image:
        side = self.family.token_side
        return Image.new("RGB", (side * 10, side * (pixels // self.family.token_area // 10)))

    def tokens(self, image: Image.Image) -> list[int]:
        return [self.pad] * self.family.tokens(image)

    def trajectory(self) -> Trajectory:
        return Trajectory(None, list(self.prompt), images=[self.look])

    def finished(self, width: int) -> Trajectory:
        """One with crops, and features (visual tokens, width) of all images."""
        seen = self.tokens(self.crop)
        words = [WORD] * (self.most // self.crops - len(seen))
        done = self.trajectory()
        done.completion_ids = (words + seen) * self.crops
        done.completion_ids += [WORD] * (self.most - len(done.completion_ids))
        done.sampled = [int(token != self.pad) for token in done.completion_ids]
        done.images += [self.crop] * self.crops
        done.features = [
            torch.zeros(self.family.tokens(image), width, dtype=torch.bfloat16) for image in done.images
        ]
        return done


class Prompts(SimpleNamespace):
    """An environment that only begins."""

    def reset(self, sample, opening):
        first = len(self.trajectories)
        self.trajectories += [self.lengths.trajectory() for _ in range(self.group)]
        return range(first, first + self.group)

    def keep_features(self, numbers, features): ...

    def tokens_left(self, trajectory) -> int:
        return 1


def count_rollout(model, processor, config: TrainConfig, lengths: Lengths) -> tuple[float, float]:
    """GiB of the larger pass, over prompts or over observations of all slots, and of the longest cache."""
    slots = min(config.batch, config.prompts * config.group)
    env = Prompts(
        group=config.group, limits=config, trajectories=[], end_ids=[1], banned_ids=[2], pad_id=0,
        processor=processor, lengths=lengths,
    )  # fmt: skip
    engine = None

    def begin():
        nonlocal engine
        engine = SlotEngine(model, env, 1.0, slots)
        engine.prefill_waiting(deque([(None, [])] * (slots // config.group)))

    def observe():
        engine.append(range(slots), [Chunk(lengths.tokens(lengths.crop), [lengths.crop])] * slots)

    def cache() -> float:
        return sum(buffer.nbytes for buffer in engine.cache.keys + engine.cache.values) / GIB

    first = peak_of(begin) - cache()
    engine.cache.reserve(len(lengths.prompt) + lengths.most)
    return max(first, peak_of(observe)), cache()


def count_update(model, config: TrainConfig, lengths: Lengths, width: int) -> float:
    """GiB of a micro-batch's forward and backward pass, with the gradients so far kept for a retry."""
    group = [lengths.finished(width) for _ in range(config.micro_batch)]
    trained = [weight for weight in model.parameters() if weight.requires_grad]

    def update():
        before = [copied(weight.grad) for weight in trained]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logprobs, _, _ = shared_prefix_logprobs(model, [group], 1.0)
        logprobs.sum().backward()
        del before

    return peak_of(update)


def count(name: str) -> dict[str, tuple[float, float]]:
    config = replace(read_config(["--model", name]), quantize="")  # of 4 bits there are no meta kernels
    estimate = memory_estimate.memory(config, config_of(name))
    model, processor = load_model(name, random_weights=True)
    weights = held()
    model = add_lora(model, config.lora)
    base = model.get_base_model()
    master_lora(model)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    lora = held() - weights
    lengths = Lengths(config, processor)
    base.eval()
    with sampling_mode(model, None):
        rollout, cache = count_rollout(base, processor, config, lengths)
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.enable_input_require_grads()
    base.train()
    use_shared_prefix(base)
    width = memory_estimate.feature_size(config, config_of(name)) // 2
    update = count_update(model, config, lengths, width)
    keys = "rollout: keys and values"
    return {
        "weights": (weights, estimate["weights"]),
        "LoRA and its gradients": (lora, estimate["LoRA and its gradients"]),
        "keys and values": (cache, estimate[keys]),
        "a pass of a rollout": (rollout, memory_estimate.phase_total(estimate, "rollout") - estimate[keys]),
        "update": (update, memory_estimate.phase_total(estimate, "update")),
    }


if __name__ == "__main__":
    prepare_libraries(1)
    print(json.dumps(count(sys.argv[1])))
