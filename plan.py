"""The memory plan of a training run, before anything is loaded: what each part takes, and whether it fits."""

import os

import torch

from model import config_of
from pack import LOGITS

GB = 2**30


def sizes(config) -> dict[str, int]:
    """Numbers of parameters: what can be quantised (the language model's matrices), the rest, LoRA a rank."""
    text, vision = config.text_config, config.vision_config
    width, mlp, depth = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    head = width // text.num_attention_heads
    outs = [width, *(2 * [text.num_key_value_heads * head]), width, mlp, mlp, width]  # q k v o gate up down
    ins = [width, width, width, width, width, width, mlp]
    w, tokens = vision.hidden_size, text.vocab_size * width
    merged = w * vision.spatial_merge_size**2
    return {
        "matrices": depth * sum(i * o for i, o in zip(ins, outs)),
        "embeddings": tokens * (1 if config.tie_word_embeddings else 2),
        "vision": vision.depth * (4 * w * w + 3 * w * vision.intermediate_size)
        + merged * merged
        + merged * width
        + w * 3 * vision.temporal_patch_size * vision.patch_size**2,
        "lora": depth * sum(i + o for i, o in zip(ins, outs)),
    }


def memory(knobs, config, world: int = 1) -> dict[str, float]:
    """GB by part. knobs: of train.py. Upper bounds where lengths vary: every trajectory at its longest.

    The rollout and the update follow each other; only the larger of the two counts for the peak.
    """
    text, count = config.text_config, sizes(config)
    width, depth, mlp = text.hidden_size, text.num_hidden_layers, text.intermediate_size
    key_width = text.num_key_value_heads * width // text.num_attention_heads
    prompt = knobs.look_pixels // 784 + 500  # the tool prompt and a question
    small = torch.cuda.is_available() or knobs.model != "tiny"  # bfloat16 but for the tiny model on a CPU
    size = 2 if small else 4
    matrices = count["matrices"] * (0.516 if knobs.quantize else size)  # NF4, double quantised: 4.13 bits
    lora = count["lora"] * knobs.lora
    adam = 2 if "8bit" in knobs.optim else 8
    slots = max(knobs.group, min(knobs.batch, knobs.prompts * knobs.group // world))
    groups = -(-knobs.micro_batch // knobs.group)
    row = groups * prompt + knobs.micro_batch * knobs.max_tokens  # tokens of a packed micro-batch
    look, crops = knobs.look_pixels // 784, (knobs.max_turns - 1) * knobs.crop_pixels // 784
    crops, shared = knobs.group * min(crops, knobs.max_tokens), knobs.prompts // world  # tokens of a group
    chunk = min(slots // knobs.group * prompt, 16_384)
    parts = {
        "weights": matrices + (count["embeddings"] + count["vision"]) * size,
        "LoRA and its gradients": lora * 8,
        "optimiser": lora * adam,
        "rollout: keys and values": slots * (prompt + knobs.max_tokens) * 2 * key_width * depth * size,
        "rollout: features of pictures": shared * (look + crops) * width * size,
        "rollout: prefill": chunk * (6 * width + 3 * mlp) * size + slots * text.vocab_size * 12,
        "update: features of pictures": shared * (knobs.group * look + crops) * width * size,
        "update: activations": activations(
            config, row, knobs.micro_batch * knobs.max_tokens, size, checkpointed=small
        ),
    }
    return {name: value / GB for name, value in parts.items()}


def activations(config, tokens: int, scored: int, size: int, checkpointed: bool) -> float:
    """Bytes above the weights while an update of so many tokens runs, `scored` of them with logits."""
    text = config.text_config
    width, depth, mlp = text.hidden_size, text.num_hidden_layers, text.intermediate_size
    key_width = text.num_key_value_heads * width // text.num_attention_heads
    # A layer holds its inputs, projections and three MLP activations, with the LoRA copies in between.
    inside = tokens * (10 * width + 4 * key_width + 6 * mlp) * size
    kept = tokens * width * depth * size if checkpointed else inside * (depth - 1)
    logits = min(scored * text.vocab_size, LOGITS) * 8  # with their softmax, or its gradient
    return inside + kept + logits


def peak(parts: dict[str, float]) -> float:
    def total(phase: str) -> float:
        return sum(value for name, value in parts.items() if name.startswith(phase))

    return sum(parts.values()) - min(total("rollout"), total("update"))  # they take turns


LOWER = {
    "rollout": "--batch (fewer trajectories at once) or --max_tokens",
    "update": "--micro_batch or --max_tokens",
    "weights": "--quantize 4bit",
}


def table(knobs) -> str:
    """The plan as text, with the verdict for the GPU at hand and the knob that helps most."""
    parts = memory(knobs, config_of(knobs.model), int(os.environ.get("WORLD_SIZE", 1)))
    lines = [f"{name:<30}{value:>8.2f} GB" for name, value in parts.items()]
    most = peak(parts) + 0.6  # the CUDA context and the allocator's cuttings
    lines.append(f"{'expected peak':<30}{most:>8.2f} GB   (rollout and update take turns)")
    if torch.cuda.is_available():
        has = torch.cuda.get_device_properties(0).total_memory / GB
        verdict = "fits" if most < has else "does NOT fit"
        lines.append(f"{torch.cuda.get_device_name()}: {has:.1f} GB, {verdict}")
    else:
        cards = ", ".join(f"{card} GB: {'yes' if most < card else 'no'}" for card in (16, 24, 48, 80))
        lines.append(f"no GPU in sight; would it fit?  {cards}")
    parts_to_lower = [part for part in LOWER if not (part == "weights" and knobs.quantize)]
    largest = max(parts_to_lower, key=lambda k: sum(v for n, v in parts.items() if k in n))
    lines.append(f"to make it smaller, lower {LOWER[largest]}".replace("lower --quantize", "use --quantize"))
    return "\n".join(lines)
