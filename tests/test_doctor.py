"""doctor.py: what is there, what is missing and the remedy, by the real command and on planted machines."""

import importlib.metadata
import json
import os
import re
import shutil
from collections import namedtuple

import pytest
from scripts import run_script

import doctor
import train
from config import PRESETS
from engine.families import family_of_preset, head_size
from machine import time_estimate
from model import config_of
from toy.rehearsal import FILES, write

Usage = namedtuple("Usage", "total used free")


def run(*arguments, **environment):
    return run_script("doctor.py", *arguments, env=os.environ | environment)


def config(*arguments):
    return doctor.read_config(list(arguments))


@pytest.mark.slow
def test_this_machine_can_do_the_tiny_model_and_every_part_runs(tmp_path):
    """By the command, every part once: both engines exact, a step, a resume, scores, TRL's loop and ours."""
    out = tmp_path / "doctor.json"
    small = ["--full", "--prompts", "2", "--group", "4", "--micro_batch", "8", "--steps", "5"]
    done = run(*small, "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSING" not in done.stdout and "this machine can do it" in done.stdout
    found = json.loads(out.read_text())
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    assert verdicts["packages"] == verdicts["exact, slots"] == verdicts["exact, generate"] == "ok"
    assert verdicts["a step, 4bit"] == verdicts["a step, unquantised"] == "ok"
    assert found["figures"]["a step, 4bit"]["scored"] == 4
    assert (
        found["figures"]["frame of boxes"]["mapped"]
        > 0.6
        > 0.1
        > found["figures"]["frame of boxes"]["unmapped"]
    )
    assert verdicts["rows, toy"] == verdicts["crops"] == "ok"
    assert found["figures"]["beside TRL's loop"]["rollout"] > 0
    assert "## CPU: tiny" in done.stdout and re.search(r"\| a step, 4bit +\| +sec_train \|", done.stdout)


def test_a_big_model_without_a_gpu_a_network_and_a_cache(tmp_path):
    """Exit code 1, and each thing that is missing has its remedy."""
    nowhere = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run("--model", "qwen2.5-vl-3b", **nowhere)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("MISSING")]
    (weights,) = [line for line in lines if " weights " in line]
    assert "7.0 GB to fetch" in weights
    assert "hf download Qwen/Qwen2.5-VL-3B-Instruct" in weights
    (data,) = [line for line in lines if " data " in line]
    assert "4.8 GB" in data and "hf download --repo-type dataset" in data
    (time,) = [line for line in lines if " time " in line]
    assert "hours for 80 steps: RTX 3090 2" in time and "needs a GPU" in time
    assert "exact, slots" in done.stdout and f"{len(lines)} missing" in done.stdout


def test_what_rows_can_teach_is_told(tmp_path):
    """By source, with a remedy where too few can; and budgets that hold too few crops."""
    write(tmp_path / next(iter(FILES)), "vstar", 30, seed=0)
    paper = ["--model", "qwen2.5-vl-3b", "--root", str(tmp_path)]
    rows, crops = doctor.check_rows(config(*paper))
    assert (rows.name, rows.verdict, crops.verdict) == ("rows, vstar", "ok", "ok")
    whole = ["--max_tokens", "2048", "--look_pixels", "12000000", "--look_share", "1"]
    rows, crops = doctor.check_rows(config(*paper, *whole))
    assert rows.verdict == crops.verdict == "note"
    assert "look_share" in rows.remedy and "raise --max_tokens" in crops.remedy


def test_a_package_of_another_version_is_named(monkeypatch):
    plain = importlib.metadata.version
    versions = {"trl": "1.15.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda n: versions.get(n) or plain(n))
    (check,) = doctor.check_packages()
    assert (check.verdict, check.figure) == ("MISSING", "1.15.0")
    assert check.remedy == "pip install trl==1.16.0"

    def gone(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return plain(name)

    monkeypatch.setattr(importlib.metadata, "version", gone)
    (check,) = doctor.check_packages()
    assert check.figure == "not installed" and check.remedy.startswith("pip install peft==")


def test_too_little_disk_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 0, 3 * 2**30))
    runs, cache = doctor.check_disk(config("--model", "qwen2.5-vl-3b"), to_fetch=11.8)
    assert runs.verdict == "ok"
    assert cache.verdict == "MISSING" and "3.0 GB free, 11.8 needed" in cache.figure
    assert "HF_HOME" in cache.remedy
    (runs,) = doctor.check_disk(config("--model", "qwen2.5-vl-32b", "--lora", "256"), to_fetch=0)
    assert runs.verdict == "MISSING" and "--out" in runs.remedy


@pytest.mark.parametrize("name, size", [("3b", 7.0), ("7b", 15.4), ("32b", 62.3)])
def test_gigabytes_to_fetch_are_the_published_ones(name, size):
    """Of the Hub's pages: 7.51, 16.6 and 66.9 GB (10^9 bytes)."""
    weights = doctor.disk_gb(config("--model", f"qwen2.5-vl-{name}"))["weights"]
    assert weights == pytest.approx(size, rel=0.02)


# As in the Hub's config.json: width, MLP width, layers, heads, key heads, vocabulary, tied embeddings; of the
# vision tower layers, width, MLP width, and the layers with full attention or with deeper levels.
WINDOWS = [7, 15, 23, 31]
SHAPES = {
    "qwen2.5-vl-3b": [2048, 11008, 36, 16, 2, 151936, True, 32, 1280, 3420, WINDOWS],
    "qwen2.5-vl-7b": [3584, 18944, 28, 28, 4, 152064, False, 32, 1280, 3420, WINDOWS],
    "qwen2.5-vl-32b": [5120, 27648, 64, 40, 8, 152064, False, 32, 1280, 3456, WINDOWS],
    "qwen3-vl-2b": [2048, 6144, 28, 16, 8, 151936, True, 24, 1024, 4096, [5, 11, 17]],
    "qwen3-vl-4b": [2560, 9728, 36, 32, 8, 151936, True, 24, 1024, 4096, [5, 11, 17]],
    "qwen3-vl-8b": [4096, 12288, 36, 32, 8, 151936, False, 27, 1152, 4304, [8, 16, 24]],
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_preset_has_the_published_shape(name):
    """What is read from engine/configs/, field by field; a typo there would train another model."""
    config = config_of(name)
    text = config.text_config
    vision = config.vision_config
    qwen3 = name.startswith("qwen3")
    shape = [text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads]
    shape += [text.num_key_value_heads, text.vocab_size, config.tie_word_embeddings]
    shape += [vision.depth, vision.hidden_size, vision.intermediate_size]
    shape.append(vision.deepstack_visual_indexes if qwen3 else vision.fullatt_block_indexes)
    assert shape == SHAPES[name]
    rope = text.rope_parameters
    assert rope["rope_theta"] == (5e6 if qwen3 else 1e6)
    assert rope["mrope_section"] == ([24, 20, 20] if qwen3 else [16, 24, 24])
    assert text.tie_word_embeddings == config.tie_word_embeddings
    assert vision.out_hidden_size == text.hidden_size
    assert head_size(text) == 128 and text.rms_norm_eps == 1e-6
    assert vision.patch_size == family_of_preset(name).patch and vision.num_heads == 16


def test_models_and_data_that_do_not_exist(tmp_path):
    check = doctor.check_weights(config("--model", "qwen-typo"))
    assert check.verdict == "MISSING" and all(preset in check.remedy for preset in PRESETS)
    check = doctor.check_data(config("--data", "deepeye"))
    assert check.verdict == "MISSING" and "deepeyes" in check.remedy
    check = doctor.check_data(config("--data", str(tmp_path)))
    assert check.verdict == "ok"
    done = run("--model", "qwen-typo")
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_a_judge_that_is_away():
    check = doctor.check_judge(config("--judge", "http://127.0.0.1:9/v1"))
    assert check.verdict == "MISSING" and "does not answer" in check.figure


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--random_weights"], ["--group", "0"]])
def test_a_mistake_in_the_call_is_exit_code_2(arguments, here):
    done = here("doctor.py", *arguments)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_time_grows_with_the_work():
    """The estimate's arithmetic: twice the questions cost twice as much, a larger model more."""
    speed = time_estimate.Speed(bytes_s=1e12, ops_s=1e14, small_s=1e-4)
    one = train.TrainConfig(model="qwen2.5-vl-3b", prompts=8, batch=64)
    two = train.TrainConfig(model="qwen2.5-vl-3b", prompts=16, batch=64)
    seven = train.TrainConfig(model="qwen2.5-vl-7b", prompts=8, batch=64)
    first, second, third = (time_estimate.step_seconds(each, speed, "cuda") for each in (one, two, seven))
    for phase in ("rollout", "update"):
        assert second[phase] == pytest.approx(2 * first[phase], rel=1e-6)
        assert third[phase] > 1.5 * first[phase]
    faster = time_estimate.Speed(bytes_s=2e12, ops_s=2e14, small_s=1e-4)
    assert sum(time_estimate.step_seconds(one, faster, "cuda").values()) == pytest.approx(
        sum(first.values()) / 2
    )
    assert "guess" in time_estimate.time_text(one, speed, "cuda")  # until a card has been measured


def test_the_plan_prints_the_time():
    done = run_script("train.py", "--plan")
    assert done.returncode == 0 and "s a step" in done.stdout.splitlines()[-1]
