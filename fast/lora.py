"""LoRA folded into the weights while sampling: one matrix product in place of three."""

from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer


@contextmanager
def merged_lora(model):
    """Fold a float32 model's LoRA into its weights for a while, and call these without PEFT's detour.

    In float32 the outputs change by rounding alone (a test holds them to the trainer's). The weights are put
    back from a copy: unmerging by subtraction would let them drift, step by step. In bfloat16 or 4 bits
    the merged weights would be other weights, so these are left alone.
    """
    layers = {}
    kept = {}
    for name, module in model.named_modules():
        if (
            isinstance(module, LoraLayer)
            and module.get_base_layer().weight.dtype == torch.float32
        ):
            layers[name] = module
            kept[name] = module.get_base_layer().weight.detach().clone()
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
