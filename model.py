"""Names -> (model, processor). A name is a preset (the embedded tiny model, Qwen2.5-VL and Qwen3-VL from the
Hub), a folder, a Hub name, or a LoRA checkpoint of a run.

    python model.py runs/mine/checkpoint-80 --out merged      # base and adapter as one plain checkpoint
"""

import argparse
import json
import shutil
import tempfile
import warnings
from difflib import get_close_matches
from pathlib import Path

import torch
import transformers
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from config import PRESETS, run_command
from engine.families import CONFIGS, FAMILIES, QWEN2_5_VL, Family, family_in, family_of_preset
from engine.inputs import speed_up_tower
from safe.checkpoints import all_checkpoints, newest_whole, weights_fault
from tools import TURN_ENDS

# On recent cards torch prefers cuDNN's attention, which makes a plan for every new shape, in half a second;
# nearly every call here has a new shape.
torch.backends.cuda.enable_cudnn_sdp(False)

# The language model's projections only: the vision MLP has gate/up/down_proj of its own, which stay frozen.
LORA_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
QUANTIZED = ("4bit",)
MERGED_FILES = (".json", ".txt", ".jinja")  # of the base, beside its weights


class ZoomProcessor(Qwen2_5_VLProcessor):
    """Qwen2_5_VLProcessor without its video processor, which can't be built without torchvision. Families
    differ in their videos, so that it serves them all.

    ProcessorMixin reads its parts from the signature of __init__, so leaving `video_processor` out is enough.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        model_type: str = QWEN2_5_VL.model_type,
        **kwargs,
    ):
        self.model_type = model_type
        self.image_token = "<|image_pad|>"
        self.video_token = "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]


def find_model(name: str, weights: bool = True) -> Path:
    """A preset, a folder or a Hub name (perhaps with @REVISION) -> the folder; what is missing is fetched.

    A run's folder stands for its newest whole checkpoint. weights: False fetches the small files alone.
    Raises ValueError.
    """
    source = PRESETS[name].source if name in PRESETS else name
    revision = ""
    if not Path(source).exists():  # a folder may have an @ in its name
        source, _, revision = source.partition("@")
    path = Path(source).expanduser()
    if not path.is_dir():
        check_is_hub_name(source)
        path = fetch(source, revision, weights)
    if (path / "adapter_config.json").exists():
        check_kind(path)
        check_whole(path)
        return path
    if (path / "config.json").exists():
        family_in(path / "config.json")
        return path
    if not all_checkpoints(path):
        raise ValueError(f"{path} holds no model: neither config.json nor adapter_config.json is there")
    newest = newest_whole(path, say=print)
    if newest is None:
        raise ValueError(f"{path} holds no whole checkpoint")
    return newest


def check_is_hub_name(source: str) -> None:
    """Raise ValueError for what is no OWNER/MODEL, or is a folder that is gone; it names what is there."""
    path = Path(source).expanduser()
    if path.name.startswith("checkpoint-") and path.parent.is_dir():
        there = [folder.name for folder in all_checkpoints(path.parent)]
        raise ValueError(f"{path.parent} holds no {path.name}; it holds {', '.join(there) or 'none'}")
    if path.parts[:1] == ("runs",):  # here a folder, no owner on the Hub
        near = get_close_matches(path.name, [each.name for each in path.parent.glob("*")], n=3)
        meant = f"; did you mean {' or '.join(map(str, map(path.with_name, near)))}?" if near else ""
        raise ValueError(f"no such folder: {source}{meant}")
    if source.count("/") != 1 or source.startswith((".", "~", "/")):
        known = ", ".join(PRESETS)
        near = get_close_matches(source, PRESETS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown model {source!r}: no preset ({known}), no folder, no OWNER/MODEL{meant}")


def fetch(source: str, revision: str, weights: bool) -> Path:
    """The folder of a Hub name in the Hub's cache; what is missing is fetched. Raises ValueError."""
    files = ["*.json", "merges.txt"] + ["*.safetensors"] * weights
    try:
        return Path(snapshot_download(source, revision=revision or None, allow_patterns=files))
    except Exception as error:  # no connection, offline mode, no such repository, no right to it ...
        raise ValueError(
            f"{source} is no folder and not on this machine, and can't be fetched ({type(error).__name__}); "
            f"where there is a connection: hf download {source}"
        ) from error


def check_kind(path: Path) -> None:
    """Raise ValueError for an adapter that is no LoRA of ours: other kinds load further files, and their
    patterns can take for ever to match."""
    try:
        config = json.loads((path / "adapter_config.json").read_text())
        kind = config["peft_type"]
        targets = config["target_modules"]
        base = config["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: adapter_config.json is broken ({error})") from error
    if kind != "LORA" or targets != LORA_TARGETS or config.get("modules_to_save"):
        raise ValueError(f"{path}: not a LoRA on the language model's projections, as train.py writes")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path}: adapter_config.json names no base")


def check_whole(path: Path) -> None:
    """Raise ValueError for a LoRA checkpoint whose weights are cut short; it names a whole one beside it."""
    weights = path / "adapter_model.safetensors"
    trouble = weights_fault(weights) if weights.is_file() else f"{weights.name} is missing"
    if trouble:
        whole = newest_whole(path.parent)
        beside = f"; whole is {whole}" if whole else ""
        raise ValueError(f"{path}: {trouble}{beside}")


def family_named(name: str) -> Family:
    """The family of a preset, a folder, a Hub name or a LoRA checkpoint, by its small files. Raises
    ValueError."""
    if family := family_of_preset(name):
        return family
    path = find_model(name, weights=False)
    if (path / "adapter_config.json").exists():
        return family_named(base_of(path))
    return family_in(path / "config.json")


def load_processor(path: Path, family: Family | None = None) -> ZoomProcessor:
    """The processor of a Hub-style folder, always with the PIL backend: torchvision's gives other pixel
    values. family: of a preset that has only its tokenizer from this folder."""
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    tokenizer.padding_side = "left"  # TRL misaligns mm_token_type_ids silently with "right"
    if family:
        images = Qwen2VLImageProcessorPil(**family.image_processor_kwargs)
    else:
        family = family_in(path / "config.json")
        images = Qwen2VLImageProcessorPil.from_pretrained(path)
    spell_out(tokenizer, family.plain_words)
    template = tokenizer.chat_template
    return ZoomProcessor(images, tokenizer, template, model_type=family.model_type)


def spell_out(tokenizer, words: tuple[str, ...]) -> None:
    """Let a tokenizer write these added tokens like any other text. Their ids stay, under names that nobody
    writes."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    found = [token for token in state["added_tokens"] if token["content"] in words]
    for token in found:
        token["content"] = f"<|not used: {token['content'].strip('<>')}|>"
    if found:
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def config_of(name: str, layers: int = 0):
    """A model's configuration; that of a preset needs no download. layers: cut both towers to this many."""
    file = CONFIGS.get(name) or find_model(name, weights=False) / "config.json"
    family = family_in(file)
    config = family.config_class.from_pretrained(file)
    if layers:
        config.text_config.num_hidden_layers = layers
        config.vision_config.depth = layers
        family.cut(config, layers)
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

    name: a preset, a folder in Hub layout, a Hub name (OWNER/MODEL or OWNER/MODEL@REVISION), or a folder
    with a LoRA adapter (which names its base). quantize: "4bit" (NF4; vision tower and head stay as they
    are). lora: rank of a fresh LoRA on the language model. dtype: default float32 on a CPU and for the tiny
    model, else bfloat16. random_weights: the shapes of `name` with fresh weights and, for the big presets,
    the tiny model's tokenizer, so that nothing is fetched; layers: then only so many in each tower. Returns
    (model, processor), the model in eval mode. Raises ValueError.
    """
    if quantize and quantize not in QUANTIZED:
        raise ValueError(f"quantize must be one of {', '.join(QUANTIZED)}, not {quantize!r}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # A preset with random weights has the tiny model's tokenizer.
    borrows = family_of_preset(name) if random_weights else None
    path = find_model("tiny" if borrows else name)
    adapter = path if (path / "adapter_config.json").exists() else None
    if adapter:  # checkpoints keep the base's name, so that a moved folder still works
        name = base_of(adapter)
        path = find_model(name)
        print(f"{adapter} stands on {name}: {path}", flush=True)
    is_tiny = not borrows and path == Path(PRESETS["tiny"].source)
    dtype = dtype or usual_dtype(is_tiny, device)
    processor = load_processor(path, borrows)
    if random_weights:
        adapter = None
        config = config_of(name, layers)
        model = make_random(config, dtype, device, quantize, processor)
    else:
        model = from_folder(path, dtype, device, quantize)
    model.name_or_path = lasting_name(name, path)
    speed_up_tower(model.model.visual)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    elif lora:
        model = add_lora(model, lora)
    return model.eval(), processor


def base_of(adapter: Path) -> str:
    """The name of the model that a LoRA checkpoint stands on."""
    return json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]


def usual_dtype(is_tiny: bool, device: str) -> torch.dtype:
    """float32 on a CPU, and for the tiny model on a GPU, too: the README's figures are made in it."""
    on_cpu = torch.device(device).type == "cpu"
    return torch.float32 if is_tiny or on_cpu else torch.bfloat16


def lasting_name(name: str, path: Path) -> str:
    """What a checkpoint calls its base: a preset or Hub name where there is one, else the folder."""
    for preset, known in PRESETS.items():
        if name == preset or Path(known.source) == path:
            return preset
    return str(path) if Path(name).is_dir() else name


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
    model_class = family_in(path / "config.json").model_class
    model, info = model_class.from_pretrained(path, output_loading_info=True, **settings)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{path} lacks {len(missing)} of the weights, {missing[0]} among them: random ones would train"
        )
    if unexpected := sorted(info["unexpected_keys"]):
        print(f"{path} holds {len(unexpected)} weights that are not used, such as {unexpected[0]}")
    for module in model.modules():  # bitsandbytes' fast 4-bit path on a CPU has no backward
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def make_random(config, dtype, device: str, quantize: str | None, processor):
    """A model of this configuration with fresh weights, whose special tokens are the processor's."""
    ids = processor.tokenizer.convert_tokens_to_ids
    config.image_token_id = ids("<|image_pad|>")
    config.video_token_id = ids("<|video_pad|>")
    config.vision_start_token_id = ids("<|vision_start|>")
    config.vision_end_token_id = ids("<|vision_end|>")
    with torch.device(device):
        model_class = FAMILIES[config.model_type].model_class
        model = model_class._from_config(config, dtype=dtype, attn_implementation="sdpa")
    if quantize:  # weights are quantised as they are read
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = from_folder(Path(folder), dtype, device, quantize)
    return model


def merge(checkpoint: str, out: Path) -> None:
    """Write base and adapter as one plain checkpoint in Hub layout, in the base's own precision; with the
    flags of its run, whose limits it keeps. Raises ValueError for what is no LoRA checkpoint."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: another model's files would be mixed with this one's")
    adapter = find_model(checkpoint)
    if not (adapter / "adapter_config.json").exists():
        raise ValueError(f"{adapter} is no LoRA checkpoint: it is whole already")
    model, processor = load_model(str(adapter), device="cpu", dtype="auto")
    merged = model.merge_and_unload()
    # Its turns end at </tool_call>, as they did in training: after a call it was never taught to stop.
    known = processor.tokenizer.get_vocab()
    merged.generation_config.eos_token_id = [known[end] for end in TURN_ENDS if end in known]
    merged.save_pretrained(out)
    # Tokenizer and processor as they came: other programs know these.
    wanted = [file for file in find_model(base_of(adapter)).iterdir() if file.suffix in MERGED_FILES]
    for file in (adapter.parent / "args.json", *wanted):
        is_index = file.name.endswith("index.json")  # of the base's own weights
        if file.exists() and not is_index and not (out / file.name).exists():
            shutil.copy(file, out)
    for file in out.glob("*.safetensors"):  # written for their owner alone; a server may be another user
        file.chmod(0o644)


def prepare_libraries(threads: int) -> None:
    """Set torch's threads, and keep the libraries from printing between our own lines."""
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def add_lora(model, rank: int):
    """Wrap a model with a fresh LoRA of this rank; only its weights will train."""
    return get_peft_model(model, lora_config(rank))


def lora_config(rank: int) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )


def read_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a LoRA checkpoint, or of a run: its newest one")
    parser.add_argument("--out", type=Path, required=True, help="folder of the merged model")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> None:
    prepare_libraries(threads=2)
    merge(arguments.checkpoint, arguments.out)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    run_command(main, read_arguments)
