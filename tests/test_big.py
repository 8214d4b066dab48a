"""The whole path of the real thing: 3B widths, the Hub's layout, two layers, random weights, on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, check_planned_cache
from safetensors.torch import load_file, save_file
from scripts import run_script

import train
from machine import memory_estimate
from model import load_model

# The files of Qwen/Qwen2.5-VL-3B-Instruct as the Hub has them, but for two layers and the ids of the tiny
# vocabulary.
CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 2,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def legacy_name(name: str) -> str:
    """As the Hub's files name a weight."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def write_hub_layout(folder, model, processor) -> None:
    """Two shards with legacy names, an index, and the .json files that came with them."""
    weights = {}
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            weights[legacy_name(name)] = weight.contiguous()
    names = sorted(weights)
    files = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        files |= dict.fromkeys(part, file)
    total = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    ids = processor.tokenizer.convert_tokens_to_ids
    special = {
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "vision_token_id": ids("<|vision_pad|>"),
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
    }
    generation = {
        "bos_token_id": ids("<|endoftext|>"),
        "pad_token_id": ids("<|endoftext|>"),
        "do_sample": True,
        "eos_token_id": [ids("<|im_end|>"), ids("<|endoftext|>")],
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
    }
    processor.tokenizer.save_pretrained(folder)
    for name, content in {
        "config.json": CONFIG | special,
        "model.safetensors.index.json": index,
        "preprocessor_config.json": PREPROCESSOR,
        "generation_config.json": generation,
        "chat_template.json": {"chat_template": "{{ messages[0].content }}"},
    }.items():
        (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the 3B's widths in the Hub's layout."""
    folder = tmp_path_factory.mktemp("models") / "qwen-3b-two-layers"
    folder.mkdir()
    torch.manual_seed(0)
    model, processor = load_model("qwen2.5-vl-3b", random_weights=True, layers=2, dtype=torch.bfloat16)
    write_hub_layout(folder, model, processor)
    return folder


def test_the_hubs_layout_is_read_to_the_last_weight(folder):
    """Legacy names, two shards: every weight is the file's, none is made up."""
    model, processor = load_model(str(folder), dtype=torch.bfloat16, device="cpu")
    state = model.state_dict()
    found = 0
    for shard in sorted(folder.glob("*.safetensors")):
        stored = load_file(shard)
        for name, weight in stored.items():
            new = "model." + name if name.startswith("visual.") else name
            new = new.replace("model.", "model.language_model.", 1) if new == name else new
            assert torch.equal(state[new], weight), name
            found += 1
    assert found == len(state) - 1 and torch.equal(
        state["lm_head.weight"], state["model.language_model.embed_tokens.weight"]
    )
    assert processor.image_processor.size == {"shortest_edge": 3136, "longest_edge": 12845056}
    assert model.config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]


@pytest.mark.slow  # test_families.py has it at Qwen3-VL's widths
def test_plan_train_resume_merge_and_reload(folder, tmp_path):
    out = tmp_path / "run"
    flags = f"--model {folder} --data toy --prompts 2 --group 2 --micro_batch 4 --lora 4 --threads 2"
    flags += " --look_pixels 12544 --crop_pixels 12544 --max_turns 2 --max_tokens 200 --max_turn_tokens 6"
    flags = (flags + " --save_every 1 --eval_size 0").split()
    planned = run_script("train.py", *flags, "--plan")
    assert planned.returncode == 0 and "expected peak" in planned.stdout
    first = run_script("train.py", *flags, "--steps", 1, "--out", out)
    assert first.returncode == 0, first.stderr[-2000:]
    second = run_script("train.py", "--out", out, "--resume", "--steps", 2)
    assert second.returncode == 0, second.stderr[-2000:]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and max(row["logp_gap"] for row in rows) < 1e-3
    merged = run_script("model.py", out / "checkpoint-2", "--out", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr[-2000:]
    model, processor = load_model(str(tmp_path / "merged"))
    assert model.lm_head.weight.shape == (151936, 2048) and processor.image_token_id
    scored = run_script(
        "eval.py",
        "--model",
        out / "checkpoint-2",
        "--limit",
        2,
        "--arms",
        "on",
        "--out",
        tmp_path / "scores",
    )
    assert scored.returncode == 0 and "look_pixels" not in scored.stderr, scored.stderr[-2000:]


def test_an_image_budget_the_model_cannot_take_is_refused(folder, tmp_path, here):
    result = here(
        "train.py",
        "--model",
        folder,
        "--data",
        "toy",
        "--look_pixels",
        10,
        "--out",
        tmp_path / "x",
    )
    assert result.returncode == 2 and "look_pixels must be between" in result.stderr


def held_bytes(model) -> int:
    """What the weights take: parameters, and the scales of those in 4 bits."""
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        if state := getattr(parameter, "quant_state", None):
            total += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return total


@pytest.mark.parametrize("quantize", ["", "4bit"])
def test_the_plan_counts_weights_and_cache_as_they_are(folder, quantize):
    """At the 3B's widths: the weights within 2 %, the key/value cache of the slots to its growth."""
    model, _ = load_model(str(folder), quantize=quantize or None, dtype=torch.bfloat16, device="cpu")
    config = train.TrainConfig(model=str(folder), quantize=quantize, group=4, prompts=2, batch=8)
    parts = memory_estimate.memory(config, model.config)
    assert parts["weights"] * memory_estimate.GB == pytest.approx(held_bytes(model), rel=0.02)
    longest = config.look_pixels // 784 + 500 + config.max_tokens
    check_planned_cache(model.config.text_config, parts, 8, longest)


PREFILL = """
import sys; sys.path.insert(0, {root!r})
import ctypes, gc
from pathlib import Path
import torch
from machine import memory_estimate
from engine.lora import cast_lora, master_lora
from engine.slots import SlotCache
from model import add_lora, load_model

torch.set_num_threads(2)
model, _ = load_model("qwen2.5-vl-3b", random_weights=True, layers=1, dtype=torch.float32)
model = add_lora(model, 16).eval()
master_lora(model)
base = model.get_base_model()

def memory(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) * 1024

def peak(tokens):
    length = tokens // 2
    cache = SlotCache(base.config.text_config, 2, "cpu", torch.float32)
    cache.reserve(length)
    embeds = torch.randn(2, length, 2048)
    places = torch.arange(length).expand(2, -1)
    cache.aim(torch.arange(2), places, length)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = memory("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")
    mask = {{"full_attention": None}}
    positions = places.expand(3, -1, -1)
    base.model.language_model(
        inputs_embeds=embeds,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    return memory("VmHWM:") - before

with torch.no_grad(), cast_lora(model):
    peak(1000)
    measured = peak(6000) - peak(2000)
print("ratio", memory_estimate.layer_bytes(base.config, 4000, 4) / measured)
"""


@pytest.mark.slow  # test_card.py has it at full depth
def test_the_plans_prefill_is_the_measured_peak():
    """At the 3B's widths, with the LoRA as it is while sampling: within 20 %. In float32: a CPU that has no
    bfloat16 products takes minutes."""
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", PREFILL.format(root=str(ROOT))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | exact)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.8 < float(done.stdout.split("ratio")[1]) < 1.2, done.stdout
