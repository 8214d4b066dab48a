"""The tiny model: a Qwen2.5-VL of under 3 M parameters, its tokenizer and processor, untrained."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

import tools
from model import ZoomProcessor
from toy.world import COLOURS, LETTERS, read_question

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Whole blocks as single tokens: the real prompts at the price of a few tokens.
BLOCKS = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    tools.TOOL_SYSTEM,
    tools.PLAIN_SYSTEM,
    tools.TOOL_SUFFIX,
    tools.PLAIN_SUFFIX,
    tools.BOXED_SUFFIX,
    f'{{"name": "{tools.TOOL}", "arguments": ',
    '{"bbox_2d": [',
    "]}",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's special tokens and one token a digit."""
    corpus = []  # written out, not drawn: a change of the world must not shuffle the ids of a trained base
    for colour in COLOURS:
        for question in (read_question(colour), f"Where is the {colour} tile?"):
            corpus += [question] * 50
        corpus += [f"Is the {colour} tile on the left or on the right?", "left", "right"] * 20
        corpus += [f"Is the {colour} tile at the top or at the bottom?", "top", "bottom"] * 20
        corpus += [
            f"Do the {colour} tile and the {other} tile show the same letter?" for other in COLOURS
        ] * 10
        corpus += [f" {colour}={letter}" for letter in LETTERS] * 5 + ["yes", "no"] * 20
    corpus += ["system\n", "user\n", "assistant\n", "Error: "] * 20
    corpus += [tools.TOOL_SYSTEM, tools.TOOL_SUFFIX]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=512,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
    fast.add_special_tokens(
        {"additional_special_tokens": [t for t in SPECIAL if t not in fast.all_special_tokens]}
    )
    fast.add_tokens([AddedToken(block, special=False, normalized=False) for block in BLOCKS])
    return fast


def make_processor() -> ZoomProcessor:
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=1280 * 28 * 28)
    return ZoomProcessor(images, make_tokenizer())


def make_model(tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            bos_token_id=None,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
        ),
        vision_config=dict(
            depth=3,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            out_hidden_size=128,
            fullatt_block_indexes=[2],
            patch_size=14,
            window_size=112,
        ),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        tie_word_embeddings=True,
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    # The class's std of 0.02 leaves the branches of so narrow a model near zero, where it learns nothing for
    # tens of thousands of images.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    return model
