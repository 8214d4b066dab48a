"""Names -> (model, processor): the embedded tiny model, Qwen2.5-VL from the Hub, folders, checkpoints.

python model.py runs/mine/checkpoint-80 --out merged      # base and adapter as one plain checkpoint
"""

import argparse
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TINY = Path(__file__).parent / "toy" / "base"
PRESETS = {
    "tiny": str(TINY),
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen2.5-vl-32b": "Qwen/Qwen2.5-VL-32B-Instruct",
}
# width, MLP width, layers, query heads, key heads, vocabulary, tied embeddings, MLP width of the vision tower
SHAPES = {
    "qwen2.5-vl-3b": (2048, 11008, 36, 16, 2, 151936, True, 3420),
    "qwen2.5-vl-7b": (3584, 18944, 28, 28, 4, 152064, False, 3420),
    "qwen2.5-vl-32b": (5120, 27648, 64, 40, 8, 152064, False, 3456),
}
# The language model's projections only: the vision MLP has gate/up/down_proj of its own, which stay frozen.
LORA_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
QUANTIZED = ("4bit",)


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
    """A preset, a folder or a Hub name -> the folder; what is missing is fetched. Raises ValueError."""
    place = PRESETS.get(name, name)
    path = Path(place).expanduser()
    if not path.is_dir() and place.count("/") == 1 and not place.startswith((".", "~", "/")):
        try:
            files = ["*.json", "*.safetensors", "merges.txt"]
            path = Path(snapshot_download(place, allow_patterns=files))
        except Exception as error:  # no connection, offline mode, no such repository, no right to it ...
            raise ValueError(
                f"{place} is not on this machine and can't be fetched here ({type(error).__name__}); "
                f"where there is a connection: hf download {place}"
            ) from error
    if not path.is_dir():
        known = ", ".join(PRESETS)
        raise ValueError(f"unknown model {name!r}: no preset ({known}), no folder, no Hub name OWNER/MODEL")
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


def config_of(name: str, layers: int = 0) -> Qwen2_5_VLConfig:
    """A model's configuration; that of a preset needs no download. layers: cut both towers to so many."""
    if name in SHAPES:
        width, mlp, depth, heads, key_heads, vocabulary, tied, vision_mlp = SHAPES[name]
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
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    else:
        config = Qwen2_5_VLConfig.from_pretrained(resolve(name))
    if layers:
        text, vision = config.text_config, config.vision_config
        text.num_hidden_layers = vision.depth = layers
        text.layer_types, vision.fullatt_block_indexes = text.layer_types[:layers], [layers - 1]
    return config


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

    name: a preset, a folder in Hub layout, a Hub name, or a folder with a LoRA adapter (which names its
    base). quantize: "4bit" (NF4; vision tower and head stay as they are). lora: rank of a fresh LoRA on the
    language model. dtype: default float32 on a CPU, bfloat16 on a GPU. random_weights: the shapes of `name`
    with fresh weights and, for the big presets, the tiny model's tokenizer, so that nothing is fetched;
    layers: then only so many in each tower. Returns (model, processor), the model in eval mode. Raises
    ValueError.
    """
    if quantize and quantize not in QUANTIZED:
        raise ValueError(f"quantize must be one of {', '.join(QUANTIZED)}, not {quantize!r}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    if random_weights:
        path, adapter = TINY if name in SHAPES else resolve(name), None
        model = make_random(config_of(name, layers), dtype, device, quantize, load_processor(path))
    else:
        path = resolve(name)
        adapter = path if (path / "adapter_config.json").exists() else None
        if adapter:  # checkpoints keep the base's name, so that a moved folder still works
            name = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
            path = resolve(name)
        model = from_folder(path, dtype, device, quantize)
    preset = next((preset for preset, place in PRESETS.items() if Path(place) == path), None)
    model.name_or_path = name if name in PRESETS or not Path(name).is_dir() else preset or str(path)
    unfold_patches(model.model.visual.patch_embed)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    elif lora:
        model = add_lora(model, lora)
    return model.eval(), load_processor(path)


def from_folder(path: Path, dtype, device: str, quantize: str | None):
    """The weights of a folder, on their device, perhaps in 4 bits."""
    settings = {"dtype": dtype, "attn_implementation": "sdpa", "device_map": {"": device}}
    if quantize:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["model.visual", "lm_head"],  # "visual" alone would match nothing
        )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, **settings)
    for module in model.modules():  # on a CPU its fast path has no backward
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def make_random(config, dtype, device: str, quantize: str | None, processor):
    """A model of this configuration with fresh weights, whose special tokens are the processor's."""
    ids = processor.tokenizer.convert_tokens_to_ids
    config.image_token_id, config.video_token_id = ids("<|image_pad|>"), ids("<|video_pad|>")
    config.vision_start_token_id, config.vision_end_token_id = ids("<|vision_start|>"), ids("<|vision_end|>")
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    if quantize:  # weights are quantised as they are read
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = from_folder(Path(folder), dtype, device, quantize)
    return model


def merge(adapter: str, out: Path) -> None:
    """Write base and adapter as one plain checkpoint in Hub layout, in the base's own precision."""
    model, processor = load_model(adapter, device="cpu", dtype="auto")
    model.merge_and_unload().save_pretrained(out)
    base = json.loads((Path(adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
    for file in resolve(base).iterdir():  # tokenizer and processor as they came: other programs know these
        wanted = file.suffix in (".json", ".txt", ".jinja") and not file.name.endswith("index.json")
        if wanted and not (out / file.name).exists():
            shutil.copy(file, out)


def unfold_patches(embed) -> None:
    """The patch embedding as the matrix product that it is: as a 3-D convolution it is many times slower."""

    def forward(patches):  # (patches, channels * time * rows * columns) -> (patches, width)
        kernel = embed.proj.weight
        return torch.nn.functional.linear(patches.to(kernel.dtype), kernel.flatten(1))

    embed.forward = forward


def grid_of(picture: Image.Image) -> tuple[int, int, int]:
    """A shown picture's grid of 14-pixel patches (time, rows, columns); four patches make a visual token.

    >>> grid_of(Image.new("RGB", (140, 112)))
    (1, 8, 10)
    """
    return 1, picture.height // 14, picture.width // 14


def see(model, processor, pictures: list[Image.Image]) -> list[torch.Tensor]:
    """What the vision tower makes of each picture: features (visual tokens, width)."""
    pixels = processor.image_processor(pictures, return_tensors="pt").to(model.device)
    return list(model.get_image_features(**pixels, return_dict=True).pooler_output)


def record(step, given: tuple[torch.Tensor, ...]):
    """step as a CUDA graph, to be called with other tensors of these shapes; None where that fails.

    step has no outputs but the one it returns, and must not mind being run again with the same tensors.
    """
    places, stream = [each.clone() for each in given], torch.cuda.current_stream()
    try:
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        aside.wait_stream(stream)
        with torch.cuda.stream(aside):  # a first run, in which libraries set themselves up
            expected = step(*places)
        stream.wait_stream(aside)
        with torch.cuda.graph(graph):
            result = step(*places)
        result.zero_()
        graph.replay()
        if not torch.allclose(result, expected, atol=0.5):
            raise RuntimeError("it computes something else")
    except RuntimeError as error:  # a kernel that waits for the device, too little memory ...
        warnings.warn(f"decoding without a CUDA graph, more slowly: {error}", stacklevel=2)
        torch.cuda.set_stream(stream)  # a recording that breaks off leaves its own in place
        return None

    def replay(*given):
        for place, value in zip(places, given, strict=True):
            place.copy_(value)
        graph.replay()
        return result

    return replay


def mrope(ids: list[int], pad: int, grids, start: int = 0) -> tuple[torch.Tensor, int]:
    """Qwen2.5-VL's positions (3, len(ids)) of tokens that start at `start`, and the position after them.

    A text token counts one on all three axes (time, row, column); the visual tokens of a picture share one
    time and count their rows and columns; what follows starts after the larger of the two. grids: (time,
    rows, columns) of each picture's 14-pixel patches, four to a token.

    >>> mrope([5, 0, 0, 5], 0, [(1, 2, 4)], start=3)
    (tensor([[3, 4, 4, 6],
            [3, 4, 4, 6],
            [3, 4, 5, 6]]), 7)
    """
    parts, done = [], 0
    for _, rows, columns in grids:
        first, rows, columns = ids.index(pad, done), rows // 2, columns // 2
        parts.append(torch.arange(start, start + first - done).expand(3, -1))
        start += first - done
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(torch.stack([torch.zeros_like(x), y, x]).flatten(1) + start)
        start += max(rows, columns)
        done = first + rows * columns
    tail = len(ids) - done
    return torch.cat([*parts, torch.arange(start, start + tail).expand(3, -1)], 1), start + tail


def add_lora(model, rank: int):
    """Wrap a model with a fresh LoRA of this rank; only its weights will train."""
    # no dropout: TRL samples and trains with the same weights only if nothing is random in train mode
    return get_peft_model(model, lora_config(rank))


def lora_config(rank: int) -> LoraConfig:
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a LoRA checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder of the merged model")
    arguments = parser.parse_args()
    merge(arguments.checkpoint, arguments.out)
    print(f"written: {arguments.out}")
