"""Loading: presets at their real widths with random weights, 4 bits, Hub layouts, adapters, merging."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import both_families
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import model as models
from config import PRESETS
from data import load
from engine.families import family_of_preset
from engine.inputs import encode_images, linear_patch_embed, speed_up_tower
from model import add_lora, config_of, find_model, load_model, merge
from rollout import rollout

LIMITS = dict(max_turns=2, max_turn_tokens=6, max_tokens=200, look_pixels=112 * 112, crop_pixels=112 * 112)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen2.5-vl-3b", 3.75),
        ("qwen2.5-vl-7b", 8.29),
        ("qwen2.5-vl-32b", 33.45),
        ("qwen3-vl-2b", 2.13),
        ("qwen3-vl-4b", 4.44),
        ("qwen3-vl-8b", 8.77),
    ],
)
def test_presets_have_the_published_size(name, billions):
    """Parameters as counted on the Hub's pages."""
    with torch.device("meta"):
        model = family_of_preset(name).model_class(config_of(name))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(billions * 1e9, rel=0.01)


def test_a_preset_at_its_real_widths_rolls_out():
    model, processor = load_model("qwen2.5-vl-3b", random_weights=True, layers=1, dtype=torch.bfloat16)
    assert model.lm_head.weight.shape == (151936, 2048)
    trajectory = rollout(model, processor, load("toy", limit=1), engine="slots", **LIMITS)[0]
    assert trajectory.completion_ids and trajectory.stop


@both_families
def test_the_unfolded_patch_embedding_is_the_convolution(model, processor):
    """Its bias, where a family has one, included."""
    embed = copy.deepcopy(model.model.visual.patch_embed)
    patches = torch.randn(8, 3 * 2 * processor.family.patch**2)
    if embed.proj.bias is not None:
        torch.nn.init.normal_(embed.proj.bias)
    linear_patch_embed(embed)
    assert torch.allclose(embed.forward(patches), type(embed).forward(embed, patches), atol=1e-5)


class CountAttention(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.calls += "attention" in str(operation)
        return operation(*args, **(kwargs or {}))


@torch.no_grad()
@both_families
def test_windows_of_a_length_attend_at_once(model, processor):
    """As Hugging Face's tower makes of pixels and grids alone, in fewer calls."""
    shades = torch.Generator().manual_seed(0)
    sizes = [(448, 448), (128, 192), (128, 192), (416, 512)]
    shown = [(torch.rand(*size, 3, generator=shades) * 255).byte().numpy() for size in sizes]
    images = [Image.fromarray(pixels) for pixels in shown]
    if processor.family.patch == 14:
        images = [image.resize((image.width // 32 * 28, image.height // 32 * 28)) for image in images]
    pixels = processor.image_processor(images, return_tensors="pt")
    linear_patch_embed(model.model.visual.patch_embed)  # rounds otherwise than the convolution
    with CountAttention() as plain:
        expected = model.get_image_features(**pixels, return_dict=True)
    speed_up_tower(model.model.visual)
    with CountAttention() as ours:
        found = encode_images(model, processor, images)
    for one, other in zip(found, processor.family.features(expected), strict=True):
        assert torch.allclose(one, other, atol=1e-5)  # windows in another order: sums round otherwise
    assert ours.calls < plain.calls / (3 if processor.family.patch == 14 else 1)


def test_four_bits(tmp_path):
    """The language model is quantised, vision tower and head are not; LoRA on it gets gradients."""
    model, processor = load_model("tiny", quantize="4bit")
    kinds = {
        name: type(module).__name__ for name, module in model.named_modules() if "Linear" in str(type(module))
    }
    assert {kind for name, kind in kinds.items() if "language_model" in name} == {"Linear4bit"}
    assert {kind for name, kind in kinds.items() if "visual" in name or "lm_head" in name} == {"Linear"}
    model = add_lora(model, 4)
    trajectory = rollout(model, processor, load("toy", limit=1), **LIMITS)[0]
    ids = torch.tensor([trajectory.prompt_ids + trajectory.completion_ids])
    pixels = processor.image_processor(trajectory.images, return_tensors="pt")
    mm = (ids == processor.image_token_id).int()
    model(input_ids=ids, labels=ids, mm_token_type_ids=mm, **pixels).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_A" in name)


def test_a_hub_layout_with_legacy_sizes_and_a_video_processor(tmp_path):
    """preprocessor_config.json as the Qwen2.5-VL repositories have it: loads, with or without torchvision."""
    folder = tmp_path / "Qwen2.5-VL-Test"
    shutil.copytree(PRESETS["tiny"].source, folder)
    (folder / "processor_config.json").unlink(missing_ok=True)
    legacy = {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(legacy))
    (folder / "video_preprocessor_config.json").write_text(
        '{"video_processor_type": "Qwen2VLVideoProcessor"}'
    )
    model, processor = load_model(str(folder))
    assert processor.image_processor.size["longest_edge"] == 12845056
    assert type(processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    plain = load_model("tiny")[1]
    look = load("toy", limit=1)[0].open().resize((112, 112))
    pixels = [p.image_processor([look], return_tensors="pt")["pixel_values"] for p in (processor, plain)]
    assert torch.equal(*pixels)


def test_adapter_and_merged_checkpoint_say_the_same(tmp_path):
    model, processor = load_model("tiny", lora=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    ids = torch.tensor([processor.tokenizer("What letter is on the red tile?")["input_ids"]])
    with torch.no_grad():
        logits = [m(input_ids=ids).logits for m in (model, load_model(str(tmp_path / "adapter"))[0])]
        merged = load_model(str(tmp_path / "merged"))
        logits.append(merged[0](input_ids=ids).logits)
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() < 0.3  # merged weights are stored in the base's bfloat16
    assert not list(Path(tmp_path / "merged").glob("adapter*"))
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    known = processor.tokenizer.get_vocab()  # any server stops where a turn ended in training
    assert {known["</tool_call>"], known["<|im_end|>"]} <= set(settings["eos_token_id"])
    assert merged[1].tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_a_hub_name_without_a_connection_says_what_to_do(monkeypatch):
    monkeypatch.setattr(models, "snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("no net")))
    with pytest.raises(ValueError, match="hf download Qwen/Qwen2.5-VL-3B-Instruct"):
        find_model("qwen2.5-vl-3b")
    with pytest.raises(ValueError, match="unknown model"):
        find_model("qwen9")


def test_unknown_quantisation_is_refused():
    with pytest.raises(ValueError, match="must be one of 4bit"):
        load_model("tiny", quantize="3bit")


def test_any_name_of_the_cpu_means_float32():
    """Under torchrun accelerate calls it cpu:0; the tiny model must not turn into bfloat16 there."""
    for device in ("cpu", "cpu:0"):
        assert load_model("tiny", device=device)[0].dtype == torch.float32


def test_a_picture_that_was_resized_behind_our_back_is_no_picture(model, processor):
    """84 x 28 pixels are fewer than the image processor takes: its features would not match the pads."""
    with pytest.raises(ValueError, match=r"\(84, 28\) pixels was shown at"):
        encode_images(model, processor, [Image.new("RGB", (112, 112)), Image.new("RGB", (84, 28))])


def test_a_folder_that_lacks_weights_is_refused(tmp_path, capsys):
    """Renamed layers would be random ones, and train without a word."""
    folder = tmp_path / "model"
    shutil.copytree(PRESETS["tiny"].source, folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace(".layers.1.", ".layers.9."): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks .* of the weights, .*layers.1.* among them"):
        load_model(str(folder))
    save_file(
        weights | {"model.visual.more": torch.zeros(1)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    load_model(str(folder))
    assert "holds 1 weights that are not used, such as model.visual.more" in capsys.readouterr().out


def test_what_a_gpu_would_do():
    """The tiny model computes in float32 everywhere; cuDNN plans attention for every shape, and is off."""
    assert models.usual_dtype(True, "cuda") == torch.float32
    assert models.usual_dtype(False, "cuda:0") == torch.bfloat16
    assert models.usual_dtype(False, "cpu") == torch.float32
    assert not torch.backends.cuda.cudnn_sdp_enabled()
