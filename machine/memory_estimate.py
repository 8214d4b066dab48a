"""The memory plan of a training run, before anything is loaded: what each part takes, and whether it fits."""

import os
import re

import torch

from engine.families import FAMILIES, head_size
from engine.shared_prefix import LOGITS
from engine.slots import MASK, PREFILL_TOKENS
from model import LORA_TARGETS, config_of

GB = 2**30
CONTEXT = 0.6  # GB: CUDA itself, and the allocator's fragmentation


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
    embeddings = whole - matrices - vision
    return {"matrices": matrices, "embeddings": embeddings, "vision": vision, "lora": lora}


def memory(config, model_config, world: int = 1) -> dict[str, float]:
    """GB by part. config: of train.py. Upper bounds where lengths vary: every trajectory at its longest.

    The rollout and the update follow each other; only the larger of the two counts for the peak.
    """
    text = model_config.text_config
    layers = text.num_hidden_layers
    count = sizes(model_config)
    family = FAMILIES[model_config.model_type]
    area = family.token_area
    width = text.hidden_size
    key_width = text.num_key_value_heads * head_size(text)
    size = 4 if config.model == "tiny" else 2
    checkpointed = torch.cuda.is_available() or config.model != "tiny"
    # NF4, double quantised: 4.13 bits.
    matrices = count["matrices"] * (0.516 if config.quantize else size)
    lora = count["lora"] * config.lora
    adam = 2 if "8bit" in config.optim else 8

    look = config.look_pixels // area
    prompt = look + 500  # the tool prompt and a question
    crops = crop_tokens(config, area)
    slots = max(config.group, min(config.batch, config.prompts * config.group // world))
    prefill = min(slots // config.group * prompt, PREFILL_TOKENS)
    mask = min(MASK, PREFILL_TOKENS * (prompt + config.max_tokens))
    completions = config.micro_batch * config.max_tokens
    # Prompts and tokens of a packed micro-batch.
    heads = -(-config.micro_batch // config.group)
    row = heads * prompt + completions
    cache = slots * (prompt + config.max_tokens) * 2 * key_width * layers
    # Of one visual token; a pass has them as they come from the tower, and side by side.
    feature = 2 * family.count_levels(model_config) * width * size
    parts = {
        "weights": matrices + (count["embeddings"] + count["vision"]) * size,
        "LoRA and its gradients": lora * 8,
        "optimiser": lora * adam,
        "rollout: keys and values": cache * size,
        "rollout: features of images": prefill * feature,
        "rollout: prefill": prefill_bytes(model_config, prefill, size) + slots * text.vocab_size * 12,
        "rollout: masks": mask * (size + 1),
        "update: features of images": (heads * look + config.micro_batch * crops) * feature,
        "update: activations": activations(model_config, row, completions, size, checkpointed),
    }
    return {name: value / GB for name, value in parts.items()}


def crop_tokens(config, area: int) -> int:
    """Visual tokens of a trajectory's crops, at most."""
    return min((config.max_turns - 1) * config.crop_pixels // area, config.max_tokens)


def waiting_features(config, model_config, world: int = 1) -> float:
    """GB of the machine's memory for the features of a step's images, which wait there for the update."""
    family = FAMILIES[model_config.model_type]
    size = 4 if config.model == "tiny" else 2
    look = config.look_pixels // family.token_area
    crops = config.group * crop_tokens(config, family.token_area)
    numbers = family.count_levels(model_config) * model_config.text_config.hidden_size
    return config.prompts // world * (look + crops) * numbers * size / GB


def prefill_bytes(model_config, tokens: int, size: int) -> float:
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
    if FAMILIES[model_config.model_type].head_norms:  # one copy, and one in float32
        numbers += 3 * (query_width + key_width)
    inside = tokens * numbers * size
    kept = tokens * width * depth * size if checkpointed else inside * (depth - 1)
    logits = min(scored * text.vocab_size, LOGITS) * 8  # with their softmax, or its gradient
    return inside + kept + logits


def peak(parts: dict[str, float]) -> float:
    def total(phase: str) -> float:
        return sum(value for name, value in parts.items() if name.startswith(phase))

    smaller = min(total("rollout"), total("update"))  # they take turns
    return sum(parts.values()) - smaller


LOWER = {
    "rollout": "lower --batch (fewer trajectories at once) or --max_tokens",
    "update": "lower --micro_batch or --max_tokens",
    "weights": "--quantize 4bit",
}


def table(config) -> str:
    """The plan as text, with the verdict for the GPU at hand and the flag that helps most."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    model_config = config_of(config.model)
    parts = memory(config, model_config, world)
    lines = [f"{name:<30}{value:>8.2f} GB" for name, value in parts.items()]
    most = peak(parts) + CONTEXT
    lines.append(f"{'expected peak':<30}{most:>8.2f} GB   (rollout and update take turns)")
    if torch.cuda.is_available():
        has = torch.cuda.get_device_properties(0).total_memory / GB
        verdict = "fits" if most < has else "does NOT fit"
        lines.append(f"{torch.cuda.get_device_name()}: {has:.1f} GB, {verdict}")
    else:
        answers = []
        for card in (16, 24, 48, 80):
            fits = most < card - 0.5  # a card gives a little less than its name says
            answer = "yes" if fits else "no"
            answers.append(f"{card} GB: {answer}")
        lines.append(f"no GPU in sight; would it fit?  {', '.join(answers)}")
    waiting = waiting_features(config, model_config, world)
    lines.append(f"features of images, in the machine's own memory: {waiting:.2f} GB at most")
    lines.append(advice(config))
    return "\n".join(lines)


def advice(config) -> str:
    """The flag that makes most room."""
    parts = memory(config, config_of(config.model))
    rooms = dict.fromkeys(LOWER, 0.0)
    for name, value in parts.items():
        for phase in LOWER:
            if phase in name:
                rooms[phase] += value
    if config.quantize:
        del rooms["weights"]
    largest = max(rooms, key=rooms.get)
    return f"to make it smaller: {LOWER[largest]}"
