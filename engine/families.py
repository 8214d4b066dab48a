"""The facts in which model families differ: one record for each. What a third needs: docs/families.md."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    vision_utils,
)

from tools import RELATIVE

# The config.json of each preset that is fetched from the Hub, with the fields that make its shapes.
CONFIGS = {file.stem: file for file in (Path(__file__).parent / "configs").glob("*.json")}


@dataclass(frozen=True)
class Family:
    """What differs from family to family. Other files ask this record, and never for a family's name."""

    model_type: str  # in config.json
    model_class: type
    config_class: type
    patch: int  # pixels; two by two patches make a visual token
    frame: tuple[int, int] | None  # of the boxes in calls; None: the shown image, in pixels
    # The vision tower's output -> features (visual tokens, width) of every image, level by level. The first
    # level takes the place of the image tokens; further ones are added after the first language layers.
    levels: Callable
    # (vision tower, grids of images) -> keyword arguments of the tower: what it would itself compute from the
    # grids. On a GPU the host would wait for each of these.
    grid_inputs: Callable
    count_levels: Callable  # configuration -> how many levels there are
    head_norms: bool  # queries and keys are normalised; the memory estimate counts what that takes
    # Added tokens of the public vocabulary that are written as plain text: docs/families.md says why
    plain_words: tuple[str, ...]
    image_processor_kwargs: dict  # as the public preprocessor_config.json has them
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
        """The vision tower's output -> one tensor (visual tokens, width * levels) for each image."""
        first, *deeper = self.levels(seen)
        if not deeper:
            return list(first)
        return [torch.cat(parts, -1) for parts in zip(first, *deeper)]

    @staticmethod
    def positions(ids: list[int], pad: int, grids, start: int = 0) -> tuple[torch.Tensor, int]:
        """Positions (3, len(ids)) of tokens that start at `start`, and the position after them: mrope.

        A text token counts one on all three axes (time, row, column). The visual tokens of an image share one
        time and count their rows and columns; what follows starts after the larger of the two. grids: (time,
        rows, columns) of each image's patches, four to a token. The families differ in videos alone.

        >>> Family.positions([5, 0, 0, 5], 0, [(1, 2, 4)], start=3)
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

ON_THE_HOST = "cu_window_seqlens"  # where the windows end: the tower reads them as numbers, in every layer


def one_level(seen) -> list:
    return [seen.pooler_output]


def patch_positions(tower, grids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"position_ids": vision_utils.get_vision_position_ids(grids, tower.spatial_merge_size)}


def windowed_positions(tower, grids: torch.Tensor) -> dict[str, torch.Tensor]:
    sizes = (tower.spatial_merge_size, tower.window_size, tower.patch_size)
    index, ends = vision_utils.get_vision_window_index(grids, *sizes)
    lengths = ends.diff()
    images = torch.searchsorted(grids.prod(1).cumsum(0), ends[1:])  # of each window
    # Images stay in order, since some layers attend to all of an image. In each one, windows of a size come
    # one after the other, for `attend_by_length`.
    keys = list(zip(images.tolist(), lengths.tolist()))
    by_length = sorted(range(len(keys)), key=keys.__getitem__)
    windows = index.split((lengths // tower.spatial_merge_unit).tolist())
    index = torch.cat([windows[i] for i in by_length])
    ends = torch.nn.functional.pad(lengths[by_length].cumsum(0), (1, 0))
    return patch_positions(tower, grids) | {"window_index": index, ON_THE_HOST: ends}


def count_one(config) -> int:
    return 1


def cut_windows(config, layers: int) -> None:
    config.text_config.layer_types = config.text_config.layer_types[:layers]
    config.vision_config.fullatt_block_indexes = [layers - 1]


QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    model_class=Qwen2_5_VLForConditionalGeneration,
    config_class=Qwen2_5_VLConfig,
    patch=14,
    frame=None,
    levels=one_level,
    grid_inputs=windowed_positions,
    count_levels=count_one,
    head_norms=False,
    plain_words=(),
    # Mean and deviation of the colours are CLIP's, which the image processor has by itself.
    image_processor_kwargs={"patch_size": 14, "min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28},
    cut=cut_windows,
)


# --------------------------------------------------------------------------------------------------
# Qwen3-VL. Its vision tower resamples learned positions, its queries and keys are normalised, mrope's axes
# are interleaved: Hugging Face's business. Ours are larger patches, boxes from 0 to 1,000, and DeepStack.


def deepstack_levels(seen) -> list:
    return [seen.pooler_output, *seen.deepstack_features]


def resampled_positions(tower, grids: torch.Tensor) -> dict[str, torch.Tensor]:
    indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
        grids,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=tower.spatial_merge_size,
    )
    return patch_positions(tower, grids) | {"interp_indices": indices, "interp_weights": weights}


def count_deepstack(config) -> int:
    return 1 + len(config.vision_config.deepstack_visual_indexes)


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
    levels=deepstack_levels,
    grid_inputs=resampled_positions,
    count_levels=count_deepstack,
    head_norms=True,
    plain_words=("<think>", "</think>"),
    image_processor_kwargs={
        "patch_size": 16,
        "min_pixels": 64 * 32 * 32,
        "max_pixels": 16384 * 32 * 32,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    cut=cut_deepstack,
)


# --------------------------------------------------------------------------------------------------
# Which family a model is of.

FAMILIES = {family.model_type: family for family in (QWEN2_5_VL, QWEN3_VL)}


def family_of(model) -> Family:
    return FAMILIES[model.config.model_type]


def family_in(file: Path) -> Family:
    """The family of the model that a config.json describes. Raises ValueError for one not known here."""
    model_type = json.loads(file.read_text()).get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"{file.parent} holds a {model_type!r}; known here: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def family_of_preset(name: str) -> Family | None:
    """The family of a preset that has its config.json here; None for the tiny model, folders, Hub names."""
    return family_in(CONFIGS[name]) if name in CONFIGS else None


def head_size(text_config) -> int:
    """Of the language model's attention: the width divided by the heads, unless the configuration says."""
    own = getattr(text_config, "head_dim", None)
    return own or text_config.hidden_size // text_config.num_attention_heads
