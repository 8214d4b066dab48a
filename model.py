"""Names -> (model, processor): the embedded tiny model, local folders, and the place for Hub names."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoTokenizer,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TINY = Path(__file__).parent / "toy" / "base"
PRESETS = {"tiny": TINY}  # Hub ids join here: "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct", ...
# The language model's projections only: the vision MLP has gate/up/down_proj of its own, which stay frozen.
LORA_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


class ZoomProcessor(Qwen2_5_VLProcessor):
    """Qwen2_5_VLProcessor without its video processor, which can't be built without torchvision.

    ProcessorMixin reads its parts from the signature of __init__, so leaving `video_processor` out is enough.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def resolve(name: str) -> Path:
    """A preset or a local folder -> the folder. Raises ValueError, cheaply, before anything is loaded."""
    path = Path(PRESETS.get(name, name)).expanduser()
    if not path.is_dir():
        raise ValueError(f"unknown model {name!r}: neither a preset ({', '.join(PRESETS)}) nor a folder")
    if not (path / "config.json").exists() and not (path / "adapter_config.json").exists():
        raise ValueError(f"{path} holds no model: neither config.json nor adapter_config.json is there")
    return path


def load_processor(path: str | Path) -> ZoomProcessor:
    """The processor of a Hub-style folder, always with the PIL backend: torchvision's gives other pixel
    values."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.padding_side = "left"  # TRL misaligns mm_token_type_ids silently with "right"
    images = Qwen2VLImageProcessorPil.from_pretrained(path)
    return ZoomProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def load_model(
    name: str,
    *,
    quantize: str | None = None,
    lora: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    random_weights: bool = False,
    layers: int = 0,
):
    """Load a model and its processor.

    name: a preset ("tiny"), a folder in Hub layout, or a folder with a LoRA adapter (which names its base).
    lora: rank of a fresh LoRA on the language model; None leaves the model as it is, all frozen or not.
    dtype: default float32 on a CPU, bfloat16 on a GPU. random_weights: the shapes of `name` with fresh
    weights; layers: then only so many in the language model and in the vision tower. Returns (model,
    processor), the model in eval mode. Raises ValueError for an unknown name.
    """
    if quantize:
        raise ValueError("quantize is not supported yet")
    path = resolve(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    adapter = path if (path / "adapter_config.json").exists() else None
    if adapter:  # checkpoints keep the base's name, so that a moved folder still works
        base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        path = resolve(base)
    if random_weights:
        config = Qwen2_5_VLConfig.from_pretrained(path)
        if layers:
            text, vision = config.text_config, config.vision_config
            text.num_hidden_layers = vision.depth = layers
            text.layer_types, vision.fullatt_block_indexes = text.layer_types[:layers], [layers - 1]
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    else:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa"
        )
    unfold_patches(model.model.visual.patch_embed)
    model.name_or_path = next((preset for preset, place in PRESETS.items() if Path(place) == path), str(path))
    model.to(device)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    elif lora:
        model = add_lora(model, lora)
    return model.eval(), load_processor(path)


def unfold_patches(embed) -> None:
    """The patch embedding as the matrix product that it is: as a 3-D convolution it is many times slower."""
    kernel = embed.proj.weight

    def forward(patches):  # (patches, channels * time * rows * columns) -> (patches, width)
        return torch.nn.functional.linear(patches.to(kernel.dtype), kernel.flatten(1))

    embed.forward = forward


def add_lora(model, rank: int):
    """Wrap a model with a fresh LoRA of this rank; only its weights will train."""
    # no dropout: TRL samples and trains with the same weights only if nothing is random in train mode
    return get_peft_model(model, lora_config(rank))


def lora_config(rank: int) -> LoraConfig:
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
    )
