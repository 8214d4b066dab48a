"""The memory that a training run needs, before anything is loaded: GB of each part, and whether it fits.

Upper bounds where lengths vary: every trajectory at its longest. The rollout and the update take turns, so
only the larger of the two counts for the peak.
"""

import os
import re

import torch

from config import TrainConfig
from engine.families import FAMILIES, head_size
from engine.shared_prefix import LOGITS
from engine.slots import MASK, PREFILL_TOKENS, SEEN
from model import LORA_TARGETS, config_of

GB = 2**30
CONTEXT = 0.6  # GB: CUDA itself, and the allocator's fragmentation
NF4 = 0.516  # bytes of a weight in 4 bits, double quantised: 4.13 bits
PROMPT = 500  # tokens: the tool prompt and a question
CARDS = (16, 24, 48, 80)  # GB
PATCHES = 4  # of a visual token
TOWER = 25  # numbers a patch, in widths of the tower: queries and keys are rotated in float32
LOWER = {  # what a part's name says -> the flag that makes it smaller
    "rollout": "lower --batch (fewer trajectories at once) or --max_tokens",
    "update": "lower --micro_batch or --max_tokens",
    "weights": "--quantize 4bit",
}


def sizes(model_config) -> dict[str, int]:
    """Numbers of parameters: matrices that can be quantised, embeddings (with norms and biases), vision
    tower, LoRA of rank 1. Counted on a model that takes no memory."""
    with torch.device("meta"):
        model = FAMILIES[model_config.model_type].model_class(model_config)
    matrices = 0
    lora = 0
    for name, module in model.named_modules():
        if re.fullmatch(LORA_TARGETS, name):
            matrices += module.weight.numel()
            lora += module.in_features + module.out_features
    vision = sum(weight.numel() for weight in model.model.visual.parameters())
    whole = sum(weight.numel() for weight in model.parameters())  # tied ones count once
    return {"matrices": matrices, "embeddings": whole - matrices - vision, "vision": vision, "lora": lora}


def memory(config: TrainConfig, model_config, world: int = 1) -> dict[str, float]:
    """GB of each part, in one of `world` processes."""
    size = number_size(config)
    count = sizes(model_config)
    matrices = count["matrices"] * (NF4 if config.quantize else size)
    lora = count["lora"] * config.lora
    adam = 2 if "8bit" in config.optim else 8  # bytes of both moments of a weight
    parts = {
        "weights": matrices + (count["embeddings"] + count["vision"]) * size,
        "LoRA and its gradients": lora * 8,
        "optimiser": lora * adam,
        **rollout_bytes(config, model_config, world),
        **update_bytes(config, model_config),
        # Gradients so far, kept for a retry; the LoRA in bfloat16, which autocast keeps for the pass.
        "update: copies of the LoRA": lora * (6 if size == 2 else 4),
    }
    return {name: value / GB for name, value in parts.items()}


def longest_lengths(config: TrainConfig, area: int) -> tuple[int, int, int]:
    """Tokens of a first look, a prompt, a completion. area: pixels of a visual token."""
    look = config.look_pixels // area
    return look, look + PROMPT, max(config.max_tokens, config.max_plain_tokens)


def rollout_bytes(config: TrainConfig, model_config, world: int) -> dict[str, float]:
    text = model_config.text_config
    area = FAMILIES[model_config.model_type].token_area
    size = number_size(config)
    look, prompt, completion = longest_lengths(config, area)
    longest = prompt + completion
    slots = max(config.group, min(config.batch, config.prompts * config.group // world))
    key_width = text.num_key_value_heads * head_size(text)
    query_width = text.num_attention_heads * head_size(text)
    cache = slots * longest * 2 * key_width * text.num_hidden_layers
    # A pass takes the prompts of waiting groups; or observations, as many as may look back at SEEN keys.
    groups = slots // config.group
    crop = min(config.crop_pixels // area, config.max_tokens) if config.max_turns > 1 else 0
    observed = min(slots, max(1, SEEN // (prompt + crop))) * crop
    tokens = min(max(groups * prompt, observed), PREFILL_TOKENS)
    shown = min(max(groups * look, observed), PREFILL_TOKENS)  # of these, visual tokens
    # First the vision tower's pass, then the language model's. A layer of it picks keys and values from the
    # cache, and repeats them for all heads.
    tower = shown * PATCHES * TOWER * model_config.vision_config.hidden_size * size
    keys = min(max(SEEN, longest), slots * longest)
    picked = keys * 2 * (key_width + query_width) * size
    mask = max(longest * crop, min(MASK, keys * crop)) * (size + 1)
    return {
        "rollout: keys and values": cache * size,
        # A pass holds features as they come from the tower, and side by side.
        "rollout: features of images": 2 * shown * feature_size(config, model_config),
        "rollout: a pass": max(tower, layer_bytes(model_config, tokens, size) + picked + mask),
        "rollout: logits": slots * text.vocab_size * 12,
    }


def update_bytes(config: TrainConfig, model_config) -> dict[str, float]:
    """Of a micro-batch: each prompt once, then all completions."""
    area = FAMILIES[model_config.model_type].token_area
    size = number_size(config)
    look, prompt, completion = longest_lengths(config, area)
    prompts = -(-config.micro_batch // config.group)
    completions = config.micro_batch * completion
    tokens = prompts * prompt + completions
    images = prompts * look + config.micro_batch * crop_tokens(config, area)
    checkpointed = torch.cuda.is_available() or config.model != "tiny"
    return {
        "update: features of images": 2 * images * feature_size(config, model_config),
        "update: activations": activations(model_config, tokens, completions, size, checkpointed),
        # What completions see, and the same as numbers, which the kernel adds.
        "update: masks": completions * (prompt + completion) * (1 + size),
    }


def number_size(config: TrainConfig) -> int:
    """Bytes of a number: float32 for the tiny model, else bfloat16."""
    return 4 if config.model == "tiny" else 2


def feature_size(config: TrainConfig, model_config) -> int:
    """Bytes of a visual token's features, all levels."""
    levels = FAMILIES[model_config.model_type].count_levels(model_config)
    return levels * model_config.text_config.hidden_size * number_size(config)


def crop_tokens(config: TrainConfig, area: int) -> int:
    """Visual tokens of a trajectory's crops, at most. area: pixels of a visual token."""
    return min((config.max_turns - 1) * config.crop_pixels // area, config.max_tokens)


def waiting_features(config: TrainConfig, model_config, world: int = 1) -> float:
    """GB of the machine's memory for the features of a step's images, which wait there for the update."""
    area = FAMILIES[model_config.model_type].token_area
    tokens = config.look_pixels // area + config.group * crop_tokens(config, area)
    return config.prompts // world * tokens * feature_size(config, model_config) / GB


def layer_bytes(model_config, tokens: int, size: int) -> float:
    """Bytes above the weights while a layer works on so many tokens; nothing is kept for a gradient."""
    text = model_config.text_config
    # The residual and attention's parts; gate, up, and what LoRA adds to it, before and after its scaling.
    return tokens * (3 * text.hidden_size + 4 * text.intermediate_size) * size


def activations(model_config, tokens: int, scored: int, size: int, checkpointed: bool) -> float:
    """Bytes above the weights while an update of so many tokens runs, `scored` of them with logits."""
    text = model_config.text_config
    width = text.hidden_size
    depth = text.num_hidden_layers
    query_width = text.num_attention_heads * head_size(text)
    key_width = text.num_key_value_heads * head_size(text)
    # A layer holds its inputs, projections and three MLP activations, with the LoRA copies in between.
    numbers = 6 * width + 4 * query_width + 4 * key_width + 6 * text.intermediate_size
    if FAMILIES[model_config.model_type].head_norms:  # the normalised ones beside them
        numbers += query_width + key_width
    inside = tokens * numbers * size
    kept = tokens * width * depth * size if checkpointed else inside * (depth - 1)
    logits = min(scored * text.vocab_size, LOGITS) * 8  # with their softmax, or its gradient
    return inside + kept + logits


def peak(parts: dict[str, float]) -> float:
    """The most at any time: all parts, but only the larger of rollout and update.

    >>> peak({"weights": 6.0, "rollout: a pass": 2.0, "update: activations": 3.0})
    9.0
    """
    phases = [phase_total(parts, phase) for phase in ("rollout", "update")]
    return sum(parts.values()) - min(phases)


def phase_total(parts: dict[str, float], phase: str) -> float:
    return sum(value for name, value in parts.items() if phase in name)


def table(config: TrainConfig) -> str:
    """The estimate as text, with the verdict for the GPU at hand and the flag that helps most."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    model_config = config_of(config.model)
    parts = memory(config, model_config, world)
    most = peak(parts) + CONTEXT
    lines = [f"{name:<30}{value:>8.2f} GB" for name, value in parts.items()]
    lines.append(f"{'expected peak':<30}{most:>8.2f} GB   (rollout and update take turns)")
    if torch.cuda.is_available():
        has = torch.cuda.get_device_properties(0).total_memory / GB
        verdict = "fits" if most < has else "does NOT fit"
        lines.append(f"{torch.cuda.get_device_name()}: {has:.1f} GB, {verdict}")
    else:
        # A card gives a little less than its name says.
        answers = [f"{card} GB: {'yes' if most < card - 0.5 else 'no'}" for card in CARDS]
        lines.append(f"no GPU in sight; would it fit?  {', '.join(answers)}")
    waiting = waiting_features(config, model_config, world)
    lines.append(f"features of images, in the machine's own memory: {waiting:.2f} GB at most")
    lines.append(advice(config))
    return "\n".join(lines)


def advice(config: TrainConfig, phase: str = "") -> str:
    """The flag that makes room in the phase that failed; where it is not known, the one that makes most."""
    if phase in LOWER:
        return f"to make it smaller: {LOWER[phase]}"
    parts = memory(config, config_of(config.model))
    totals = {phase: phase_total(parts, phase) for phase in LOWER}
    if config.quantize:
        del totals["weights"]
    return f"to make it smaller: {LOWER[max(totals, key=totals.get)]}"
