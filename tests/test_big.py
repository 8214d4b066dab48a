"""The whole path of the real thing: 3B widths, one layer, random weights, on the CPU."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from model import load_model


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hub-style folder with the 3B's widths."""
    folder = tmp_path_factory.mktemp("models") / "qwen-3b-one-layer"
    torch.manual_seed(0)
    model, processor = load_model("qwen2.5-vl-3b", random_weights=True, layers=1, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_plan_train_resume_merge_and_reload(folder, tmp_path):
    out = tmp_path / "run"
    knobs = f"--model {folder} --data toy --prompts 2 --group 2 --micro_batch 4 --lora 4 --threads 2"
    knobs += " --look_pixels 12544 --crop_pixels 12544 --max_turns 2 --max_tokens 200 --max_turn_tokens 6"
    knobs = (knobs + " --save_every 1 --eval_size 4").split()
    planned = run("train.py", *knobs, "--plan")
    assert planned.returncode == 0 and "expected peak" in planned.stdout
    first = run("train.py", *knobs, "--steps", 1, "--out", out)
    assert first.returncode == 0, first.stderr[-2000:]
    second = run("train.py", "--out", out, "--resume", "--steps", 2)
    assert second.returncode == 0, second.stderr[-2000:]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and max(row["logp_gap"] for row in rows) < 1e-3
    assert json.loads((out / "eval.json").read_text())["after"]["on"]["all"]["n"] == 4
    merged = run("model.py", out / "checkpoint-2", "--out", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr[-2000:]
    model, processor = load_model(str(tmp_path / "merged"))
    assert model.lm_head.weight.shape == (151936, 2048) and processor.image_token_id
    scored = run("eval.py", "--model", out / "checkpoint-2", "--limit", 3, "--arms", "on")
    assert scored.returncode == 0 and "look_pixels" not in scored.stderr, scored.stderr[-2000:]


def test_an_image_budget_the_model_cannot_take_is_refused(folder, tmp_path):
    result = run("train.py", "--model", folder, "--data", "toy", "--look_pixels", 10, "--out", tmp_path / "x")
    assert result.returncode == 2 and "look_pixels must be between" in result.stderr
