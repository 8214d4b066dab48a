"""Texts and images -> what the model takes: token ids, features of images, positions' grids.

An image has one token id in a text, `<|image_pad|>`, as often as it has visual tokens. Features are what the
vision tower makes of an image: (visual tokens, width * levels), see `Family`.
"""

from copy import copy
from itertools import groupby

import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from engine.families import ON_THE_HOST


def padded(rows: list, value=-1, side: str = "right") -> torch.Tensor:
    """Rows of unequal length, lists or tensors of one type, as a tensor (B, longest).

    >>> padded([[1, 2], [3]])
    tensor([[ 1,  2],
            [ 3, -1]])
    """
    rows = [torch.as_tensor(row) for row in rows]
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def expand_image_tokens(processor, text: str, images: list[Image.Image]) -> list[int]:
    """Tokenise text once, each image token repeated to its image's number of visual tokens."""
    pad = processor.image_token_id
    counts = map(processor.family.tokens, images)
    ids = []
    for token in processor.tokenizer(text, add_special_tokens=False)["input_ids"]:
        ids += [pad] * next(counts) if token == pad else [token]
    return ids


def pixel_budgets(processor, look_pixels: int | None, crop_pixels: int | None) -> tuple[int, int]:
    """The pixel budgets of a first look and of a crop; unset ones are the processor's own maximum.

    Raises ValueError outside the processor's limits: it would resize again, into a frame of its own.
    """
    least = processor.image_processor.size["shortest_edge"]
    most = processor.image_processor.size["longest_edge"]
    for name, budget in (("look_pixels", look_pixels), ("crop_pixels", crop_pixels)):
        if budget is not None and not least <= budget <= most:
            raise ValueError(f"{name} must be between {least} and {most} for this model, not {budget}")
    return look_pixels or most, crop_pixels or most


def linear_patch_embed(embed) -> None:
    """The patch embedding as the matrix product that it is: as a 3-D convolution it is many times slower."""

    def forward(patches):  # (patches, channels * time * rows * columns) -> (patches, width)
        kernel = embed.proj.weight
        matrix = kernel.flatten(1)
        return torch.nn.functional.linear(patches.to(kernel.dtype), matrix, embed.proj.bias)

    embed.forward = forward


def attend_by_length(module, query, key, value, attention_mask, scaling, cu_seq_lens_q, **kwargs):
    """Attention inside each window or image of a row of N patches: from (1, heads, N, head size) each to
    (1, N, heads, head size). Neighbours of one length are attended to in one call; Hugging Face makes a call
    for each, 63 in a windowed layer for a look of 1,000 tokens.

    cu_seq_lens_q: where they end, from 0 on, on the host.
    """
    lengths = cu_seq_lens_q.diff().tolist()
    outputs = []
    begin = 0
    for length, run in groupby(lengths):
        count = len(list(run))
        part = slice(begin, begin + count * length)
        begin = part.stop
        q, k, v = (
            each[0, :, part].unflatten(1, (count, length)).transpose(0, 1) for each in (query, key, value)
        )
        seen = scaled_dot_product_attention(q, k, v, scale=scaling)  # (count, heads, length, head size)
        outputs.append(seen.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


# Hugging Face hands all windows over at once to an attention whose name says "flash".
AttentionInterface.register("flash_by_length", attend_by_length)


def speed_up_tower(tower) -> None:
    """Let a vision tower compute the same in fewer operations."""
    linear_patch_embed(tower.patch_embed)
    own = copy(tower.config)  # of the attention alone: a model made from a config looks for a package "flash"
    own._attn_implementation = "flash_by_length"
    for block in tower.blocks:
        block.attn.config = own


def encode_images(model, processor, images: list[Image.Image]) -> list[torch.Tensor]:
    """The features (visual tokens, width * levels) of each image.

    Raises ValueError for an image that the image processor has resized: its image tokens would not match.
    """
    if not images:
        return []
    family = processor.family
    pixels = processor.image_processor(images, return_tensors="pt")
    # The grids stay on the host. On a GPU the host would wait for their numbers in every layer of the tower,
    # some hundred times an image batch in the 3B.
    grids = pixels.pop("image_grid_thw")
    for image, grid in zip(images, map(tuple, grids.tolist())):
        if grid != family.grid(image):
            raise ValueError(f"an image of {image.size} pixels was shown at {grid} patches")
    given = {"pixel_values": pixels["pixel_values"]} | family.grid_inputs(model.model.visual, grids)
    for name, value in given.items():
        if name != ON_THE_HOST:
            given[name] = value.to(model.device)
    return family.features(model.get_image_features(image_grid_thw=grids, return_dict=True, **given))


def language_inputs(model, ids: torch.Tensor, features: list[torch.Tensor]) -> dict:
    """The language model's inputs for tokens `ids` (R, L), with the features of their images, in order.

    The first level takes the place of the image tokens. Deeper ones go along, for Hugging Face's model to add
    to what its first layers have made of the image tokens.
    """
    embeds = model.get_input_embeddings()(ids)  # (R, L, width)
    if not features:
        return {"inputs_embeds": embeds}
    is_image = ids == model.config.image_token_id
    features = torch.cat(features).to(embeds.device, embeds.dtype)
    first, *deeper = features.split(embeds.shape[-1], -1)  # (image tokens, width) each
    inputs = {"inputs_embeds": embeds.masked_scatter(is_image[..., None], first)}
    if deeper:
        inputs["visual_pos_masks"] = is_image
        inputs["deepstack_visual_embeds"] = deeper
    return inputs


def image_inputs(model, processor, ids, images, features: list[torch.Tensor]) -> dict:
    """What Hugging Face's whole model takes beside tokens `ids` (R, L), in place of pixels.

    images: all that have tokens in ids, row by row. features: of those that are not in the cache yet.
    """
    grids = list(map(processor.family.grid, images))
    inputs = {
        "image_grid_thw": torch.tensor(grids, device=model.device),
        "mm_token_type_ids": (ids == processor.image_token_id).int(),
        "mm_encoder_outputs": {},
    }
    if features:
        width = model.config.get_text_config().hidden_size
        levels = zip(*(each.split(width, -1) for each in features))
        first, *deeper = map(list, levels)
        inputs["mm_encoder_outputs"]["image"] = BaseModelOutputWithDeepstackFeatures(
            pooler_output=first, deepstack_features=deeper
        )
    return inputs
