"""The GPU path on the pretend card (tests/pretend_card.py): its runs are the CPU's, the host waits no more
often than it has to, memory that fails is given back, and faults that only a card has are seen."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from pyarrow.parquet import read_table
from scripts import run_script

from config import PRESETS
from safe.files import read_rows

RUN = """--data toy --prompts 2 --group 4 --batch 8 --micro_batch 4 --threads 1 --max_turns 3 --max_tokens 300
    --max_turn_tokens 40 --look_pixels 50176 --crop_pixels 16384 --eval_size 0 --save_every 1"""
RUN = RUN.split()
# What a run has in common with the same run elsewhere; times and peaks of memory are its own.
SAME = ("loss", "grad_norm", "tokens", "reward", "accuracy", "tool_rate", "entropy")


def on_card(*command) -> subprocess.CompletedProcess:
    done = run_script("tests/pretend_card.py", *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "without a CUDA graph" not in done.stderr
    return done


def check(name: str) -> dict:
    """The counts of tests/card_checks.py."""
    done = run_script("tests/pretend_card.py", "tests/card_checks.py", name, "tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(folder) -> list[dict]:
    return [{key: row[key] for key in SAME} for row in read_rows(folder / "metrics.jsonl")]


def test_a_run_and_its_resume_are_the_cpus(tmp_path):
    """To all stored digits, with captured graphs, and a checkpoint whose tensors were on the card."""
    flags = [*RUN, "--lr_schedule", "constant"]  # a linear one would depend on the number of steps
    plain = run_script("train.py", "--out", tmp_path / "cpu", "--steps", 3, *flags)
    assert plain.returncode == 0, plain.stderr[-2000:]
    on_card("train.py", "--out", tmp_path / "card", "--steps", 2, *flags)
    done = on_card("train.py", "--out", tmp_path / "card", "--resume", "--steps", 3)
    assert "going on from checkpoint-2" in done.stdout and "engine/slots.py" in done.stderr
    assert rows_of(tmp_path / "card") == rows_of(tmp_path / "cpu")
    weights = torch.load(tmp_path / "card/checkpoint-3/optimizer.pt", map_location="cpu", weights_only=True)
    assert weights["state"]


def test_the_host_waits_once_a_step_and_for_no_image():
    counts = check("waits")
    assert counts["step"]["waits"] < 1.1 and counts["step"]["copies"] == 0  # a captured graph is tried once
    assert counts["images"]["waits"] == 0 and counts["images"]["copies"] <= 3
    assert counts["update"]["waits"] <= 6 and counts["update"]["copies"] <= 10


def test_memory_that_fails_in_scoring_and_selecting():
    counts = check("scores")
    for found in counts["scores"].values():
        assert found == {"again": counts["plain"], "told": 1}
    for found in counts["selected"].values():  # tried again it draws others, but as many
        assert found["told"] == 1 and len(found["again"]) == 4
        for row in found["again"]:
            assert len(row["answers_look"]) == len(row["answers_crop"]) == 4 and row["p_look"] is not None


# What on a CPU is no fault: file, text, fault, and what the card says.
FAULTS = {
    "positions that stay on the host": (
        "engine/slots.py",
        "        positions = positions.to(self.device)\n",
        "",
        "at least two devices",
    ),
    "numpy of what is on the card": (
        "engine/slots.py",
        "torch.isin(tokens, self.end_ids).tolist()",
        "torch.isin(tokens, self.end_ids).numpy()",
        "can't convert cuda:0",
    ),
    "images that are not moved": (
        "engine/inputs.py",
        "given[name] = value.to(model.device)",
        "given[name] = value",
        "at least two devices",
    ),
    "a wait in the captured step": (
        "engine/slots.py",
        "        hidden = self.forward(None, inputs,",
        "        lengths.max().item()\n        hidden = self.forward(None, inputs,",
        "without a CUDA graph",
    ),
    "an index from the host in the captured step": (
        "engine/slots.py",
        "rows = torch.arange(count, device=buffer.device)",
        "rows = torch.arange(count)",
        "without a CUDA graph",
    ),
    "a graph whose inputs are gone": (
        "engine/graph.py",
        "        result.zero_()\n",
        "        inputs = [each.clone() for each in inputs]\n        result.zero_()\n",
        "an illegal memory access",
    ),
}
USUAL = ("positions that stay on the host", "a wait in the captured step")


def usual_or_slow(names, usual) -> list:
    return [pytest.param(name, marks=[] if name in usual else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", usual_or_slow(FAULTS, USUAL))
def test_a_fault_that_only_a_card_has_is_seen(name, tmp_path):
    file, text, fault, says = FAULTS[name]
    copy = tmp_path / "copy"
    skipped = shutil.ignore_patterns(".*", "runs", "docs", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=skipped)
    source = (copy / file).read_text()
    assert source.count(text) == 1
    (copy / file).write_text(source.replace(text, fault))
    script = ["train.py", "--out", str(tmp_path / "run"), "--steps", "1", *RUN]
    command = [sys.executable, "tests/pretend_card.py", *script]
    done = subprocess.run(command, cwd=copy, env=os.environ, capture_output=True, text=True)
    assert says in done.stderr, done.stderr[-2000:]


@pytest.mark.slow
def test_memory_that_fails_in_training():
    """At the first, at two middle ones and at the last allocation of an update and of a rollout."""
    counts = check("training")
    assert len(counts) == 8
    for place, found in counts.items():
        assert found["more"] <= 512, place
        # A graph that finds no room is done without; a rollout that is tried again draws other numbers.
        assert found["told"] == 1 or place.startswith("rollout")
        assert found["gap"] < 1e-6 or place.startswith("rollout")


@pytest.mark.slow
def test_a_run_without_memory_is_finished_by_what_it_prints(tmp_path):
    """On a card of 22 MB: each time it dies, the command that it prints is typed as it stands."""
    out = tmp_path / "run"
    flags = "--data toy --prompts 4 --steps 2 --eval_size 0 --save_every 1 --threads 1 --max_turns 3"
    command = ["train.py", "--out", str(out), *flags.split()]
    deaths = 0
    while True:
        done = run_script("tests/pretend_card.py", "--gib", 0.022, *command)
        if done.returncode == 0:
            break
        deaths += 1
        said = done.stdout + done.stderr
        (typed,) = re.findall(r"python (train\.py --out \S+ --resume --\S+ \d+)", said)
        assert deaths < 5, said[-2000:]
        command = typed.split()
    assert deaths and [row["step"] for row in read_rows(out / "metrics.jsonl")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--quantize 4bit"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_step_in_bf16_and_in_4_bits(family, flags, qwen3_folder, tmp_path):
    """A folder's weights are in bfloat16 on a card; adapters train in float32."""
    if family == "qwen3_vl":
        folder = qwen3_folder
    else:
        folder = tmp_path / "tiny"
        shutil.copytree(ROOT / "toy/base", folder)
    out = tmp_path / "run"
    flags = [*flags.split(), "--beta", "0.04", "--look_pixels", "65536", "--crop_pixels", "65536"]
    on_card("train.py", "--model", folder, "--out", out, "--steps", 1, *RUN, *flags)
    (row,) = read_rows(out / "metrics.jsonl")
    assert row["tokens"] > 0 and row["logp_gap"] < 0.5
    assert family == "qwen3_vl" or row["grad_norm"] > 0  # random weights earn the same in every answer


@pytest.mark.slow
def test_eval_and_select_are_the_cpus(tmp_path):
    arms = "on,off,blank,random,swap,oracle,forced"
    score = ["eval.py", "--model", "tiny", "--data", "toy", "--limit", 8, "--arms", arms, "--threads", 1]
    select = ["select_data.py", "--model", "tiny", "--data", "toy", "--limit", 8, "--k", 2, "--threads", 1]
    image = tmp_path / "toy.png"
    shutil.copy(ROOT / "docs/toy.png", image)
    ask = ["eval.py", "--model", "tiny", "--ask", image, "What letter is on the red tile?", "--threads", 1]
    for name, command in (("score", score), ("select", select), ("ask", ask)):
        plain = run_script(*command, "--out", tmp_path / f"{name}-cpu")
        assert plain.returncode == 0, plain.stderr[-2000:]
        on_card(*command, "--out", tmp_path / f"{name}-card")
    for name in ("score-{}/records.jsonl", "ask-{}/trajectories.jsonl"):
        one, other = (read_rows(tmp_path / name.format(place)) for place in ("cpu", "card"))
        for row in one + other:
            row.pop("seconds", None)
        assert one == other and one
    tables = [read_table(tmp_path / f"select-{place}/scores.parquet") for place in ("cpu", "card")]
    assert tables[0].equals(tables[1]) and len(tables[0]) == 8


@pytest.mark.slow
def test_every_part_of_the_doctor():
    said = check("doctor")["said"]
    lines = {line[8:34].strip(): line[:8].strip() for line in said.splitlines() if line[:3] == "ok "}
    assert "with a CUDA graph" in said and "pretend card" in said
    for part in ("decoding", "a step, unquantised", "a step, 4bit", "beside TRL's loop"):
        assert lines.get(part) == "ok", said


# --------------------------------------------------------------------------------------------------
# Without data: models at full depth.

LARGE = [name for name in PRESETS if name != "tiny"]


@pytest.mark.parametrize("name", usual_or_slow(LARGE, ["qwen2.5-vl-3b"]))
def test_the_estimate_is_what_is_held_at_full_depth(name):
    """Weights, LoRA, keys and values, an update: within 5 %. A pass of a rollout: no more than the estimate,
    which is for the longest."""
    done = run_script("tests/hollow_checks.py", name)
    assert done.returncode == 0, done.stderr[-3000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    found, estimate = counted.pop("a pass of a rollout")
    assert 0.6 * estimate <= found <= estimate, counted
    for found, estimate in counted.values():
        assert 0.95 * estimate <= found <= 1.05 * estimate, counted
