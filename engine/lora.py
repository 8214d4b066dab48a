"""A model while it samples: its LoRA folded into float32 weights, or held in the model's own precision."""

from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer


def lora_layers(model) -> dict[str, LoraLayer]:
    """The layers with a LoRA, by name."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layers[name] = module
    return layers


@contextmanager
def merged_lora(model):
    """Fold a float32 model's LoRA into its weights for a while, and call these layers without PEFT's detour.

    In float32 the outputs change by rounding alone (a test holds them to the trainer's). The weights are put
    back from a copy, because unmerging by subtraction would let them drift, step by step. In bfloat16 or 4
    bits the merged weights would be other weights: see `cast_lora`.
    """
    layers = {}
    kept = {}
    for name, layer in lora_layers(model).items():
        weight = layer.get_base_layer().weight
        if weight.dtype == torch.float32:
            layers[name] = layer
            kept[name] = weight.detach().clone()
    try:
        for name, layer in layers.items():
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
            layer.unmerge()
            layer.get_base_layer().weight.data.copy_(kept[name])


@contextmanager
def cast_lora(model):
    """Hold a bfloat16 model's LoRA in bfloat16 for a while, as autocast computes it in the update.

    PEFT computes a LoRA that is left in float32 from a float32 copy of every layer's input. That is slower,
    needs more memory, and is not what the trainer computes.
    """
    kept = {}
    for layer in lora_layers(model).values():
        for part in (layer.lora_A, layer.lora_B):
            for weight in part.parameters():
                if weight.dtype != model.dtype:
                    kept[weight] = weight.data
    try:
        for weight in kept:
            weight.data = weight.data.to(model.dtype)
        yield
    finally:
        for weight, data in kept.items():
            weight.data = data


def master_lora(model) -> None:
    """Hold the LoRA in float32, and leave it to autocast what is computed in bfloat16.

    TRL casts the adapters of a model in 4 bits to bfloat16. At a learning rate of 2e-5 half a step of that
    format is larger than a whole update, so that most weights would not move. PEFT's own cast would copy
    every layer's input to float32, only for autocast to cast it back.
    """
    for layer in lora_layers(model).values():
        layer.cast_input_dtype_enabled = False
        for weight in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
            weight.data = weight.data.float()


@contextmanager
def sampling_mode(model, seed: int | None):
    """Eval mode (checkpointing in train mode drops the cache), no gradients, LoRA folded in, and with a seed
    a random state of its own."""
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        random_state = torch.random.fork_rng(devices, enabled=seed is not None)
        with torch.no_grad(), merged_lora(model), cast_lora(model), torch.inference_mode(), random_state:
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        model.train(was_training)
