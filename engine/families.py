"""The facts in which model families differ: one record each. What a third needs: docs/families.md."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tools import RELATIVE


@dataclass(frozen=True)
class Family:
    """What is different from family to family, and asked for wherever it matters: no name is tested
    elsewhere."""

    model_type: str  # in config.json
    model_class: type
    config_class: type
    patch: int  # pixels; two by two patches make a visual token
    frame: tuple[int, int] | None  # of the boxes in calls; None: the shown image, in pixels
    # (ids, pad, grids, start) -> positions (3, len(ids)), and the one after them
    positions: Callable
    # The vision tower's output -> features (visual tokens, width) of every image, level by level. The first
    # level takes the place of the pads; each further one is added after one of the language model's layers.
    levels: Callable
    count_levels: Callable  # configuration -> how many levels there are
    head_norms: bool  # queries and keys are normalised; plan.py counts what that takes
    images: dict  # of the image processor, as the public preprocessor_config.json has them
    shapes: dict[str, tuple]  # of the presets
    make_config: Callable  # shape -> configuration
    cut: Callable  # (configuration, layers): what goes with fewer layers in each tower, in place

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that a visual token covers."""
        return 2 * self.patch

    @property
    def token_area(self) -> int:
        """Pixels of that square."""
        return self.token_side**2

    def grid(self, image: Image.Image) -> tuple[int, int, int]:
        """A shown image's grid of patches (time, rows, columns).

        >>> QWEN2_5_VL.grid(Image.new("RGB", (140, 112)))
        (1, 8, 10)
        """
        return 1, image.height // self.patch, image.width // self.patch

    def tokens(self, image: Image.Image) -> int:
        """How many visual tokens a shown image has.

        >>> QWEN2_5_VL.tokens(Image.new("RGB", (140, 112))), QWEN3_VL.tokens(Image.new("RGB", (160, 128)))
        (20, 20)
        """
        return (image.height // self.token_side) * (image.width // self.token_side)

    def features(self, seen) -> list[torch.Tensor]:
        """The vision tower's output -> one tensor (visual tokens, width * levels) an image."""
        first, *deeper = self.levels(seen)
        if not deeper:
            return list(first)
        return [torch.cat(parts, -1) for parts in zip(first, *deeper)]


def mrope(ids: list[int], pad: int, grids, start: int = 0) -> tuple[torch.Tensor, int]:
    """Positions (3, len(ids)) of tokens that start at `start`, and the position after them.

    A text token counts one on all three axes (time, row, column); the visual tokens of an image share one
    time and count their rows and columns; what follows starts after the larger of the two. grids: (time,
    rows, columns) of each image's patches, four to a token. Qwen2.5-VL and Qwen3-VL differ in videos alone.

    >>> mrope([5, 0, 0, 5], 0, [(1, 2, 4)], start=3)
    (tensor([[3, 4, 4, 6],
            [3, 4, 4, 6],
            [3, 4, 5, 6]]), 7)
    """
    parts = []
    done = 0  # tokens
    for _, rows, columns in grids:
        rows = rows // 2
        columns = columns // 2
        first = ids.index(pad, done)
        parts.append(torch.arange(start, start + first - done).expand(3, -1))
        start += first - done
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(torch.stack([torch.zeros_like(x), y, x]).flatten(1) + start)
        start += max(rows, columns)
        done = first + rows * columns
    end = start + len(ids) - done
    parts.append(torch.arange(start, end).expand(3, -1))
    return torch.cat(parts, 1), end


# --------------------------------------------------------------------------------------------------
# Qwen2.5-VL.


def one_level(seen) -> list:
    return [seen.pooler_output]


def count_one(config) -> int:
    return 1


def qwen2_5_config(shape: tuple) -> Qwen2_5_VLConfig:
    width, mlp, depth, heads, key_heads, vocabulary, tied, vision_mlp = shape
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = dict(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=mlp, num_hidden_layers=depth,
        num_attention_heads=heads, num_key_value_heads=key_heads, rope_parameters=rope, rms_norm_eps=1e-6,
        max_position_embeddings=128000, tie_word_embeddings=tied, eos_token_id=151645,
    )  # fmt: skip
    vision = dict(
        depth=32, hidden_size=1280, intermediate_size=vision_mlp, num_heads=16, out_hidden_size=width,
        fullatt_block_indexes=[7, 15, 23, 31], window_size=112,
    )  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def cut_windows(config, layers: int) -> None:
    config.text_config.layer_types = config.text_config.layer_types[:layers]
    config.vision_config.fullatt_block_indexes = [layers - 1]


QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    model_class=Qwen2_5_VLForConditionalGeneration,
    config_class=Qwen2_5_VLConfig,
    patch=14,
    frame=None,
    positions=mrope,
    levels=one_level,
    count_levels=count_one,
    head_norms=False,
    # Mean and deviation of the colours are CLIP's, which the image processor has by itself.
    images={"patch_size": 14, "min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28},
    # width, MLP width, layers, query heads, key heads, vocabulary, tied embeddings, MLP width of the vision
    # tower
    shapes={
        "qwen2.5-vl-3b": (2048, 11008, 36, 16, 2, 151936, True, 3420),
        "qwen2.5-vl-7b": (3584, 18944, 28, 28, 4, 152064, False, 3420),
        "qwen2.5-vl-32b": (5120, 27648, 64, 40, 8, 152064, False, 3456),
    },
    make_config=qwen2_5_config,
    cut=cut_windows,
)


# --------------------------------------------------------------------------------------------------
# Qwen3-VL. Its vision tower resamples learned positions, its queries and keys are normalised, mrope's axes
# are interleaved: Hugging Face's business. Ours are larger patches, boxes from 0 to 1,000, and DeepStack.


def deepstack_levels(seen) -> list:
    return [seen.pooler_output, *seen.deepstack_features]


def count_deepstack(config) -> int:
    return 1 + len(config.vision_config.deepstack_visual_indexes)


def qwen3_config(shape: tuple) -> Qwen3VLConfig:
    width, mlp, depth, heads, tied, vision_width, vision_mlp, vision_depth, deeper = shape
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    rope["mrope_interleaved"] = True
    text = dict(
        vocab_size=151936, hidden_size=width, intermediate_size=mlp, num_hidden_layers=depth,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, rope_parameters=rope,
        rms_norm_eps=1e-6, max_position_embeddings=262144, tie_word_embeddings=tied, eos_token_id=151645,
    )  # fmt: skip
    vision = dict(
        depth=vision_depth, hidden_size=vision_width, intermediate_size=vision_mlp, num_heads=16,
        out_hidden_size=width, num_position_embeddings=2304, deepstack_visual_indexes=deeper, patch_size=16,
    )  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def cut_deepstack(config, layers: int) -> None:
    """Levels come from the first layers that are left, and never more than layers that can take one: Hugging
    Face drops what is too many without a word."""
    levels = min(layers, len(config.vision_config.deepstack_visual_indexes))
    config.vision_config.deepstack_visual_indexes = list(range(levels))


QWEN3_VL = Family(
    model_type="qwen3_vl",
    model_class=Qwen3VLForConditionalGeneration,
    config_class=Qwen3VLConfig,
    patch=16,
    frame=RELATIVE,
    positions=mrope,
    levels=deepstack_levels,
    count_levels=count_deepstack,
    head_norms=True,
    images={
        "patch_size": 16,
        "min_pixels": 64 * 32 * 32,
        "max_pixels": 16384 * 32 * 32,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    # width, MLP width, layers, query heads, tied embeddings; vision tower: width, MLP width, layers, and
    # after which of them the deeper levels are taken
    shapes={
        "qwen3-vl-2b": (2048, 6144, 28, 16, True, 1024, 4096, 24, [5, 11, 17]),
        "qwen3-vl-4b": (2560, 9728, 36, 32, True, 1024, 4096, 24, [5, 11, 17]),
        "qwen3-vl-8b": (4096, 12288, 36, 32, False, 1152, 4304, 27, [8, 16, 24]),
    },
    make_config=qwen3_config,
    cut=cut_deepstack,
)


def head_size(text_config) -> int:
    """Of the language model's attention: the width divided by the heads, unless the configuration says."""
    own = getattr(text_config, "head_dim", None)
    return own or text_config.hidden_size // text_config.num_attention_heads


FAMILIES = {family.model_type: family for family in (QWEN2_5_VL, QWEN3_VL)}


def family_of(model) -> Family:
    return FAMILIES[model.config.model_type]


def family_of_preset(name: str) -> Family | None:
    """Of a preset whose shape is known without its files; None for the tiny model, folders and Hub names."""
    for family in FAMILIES.values():
        if name in family.shapes:
            return family
    return None
