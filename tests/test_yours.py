"""The changes that docs/yours.md shows, applied as printed to a copy of the project, and used."""

import json
import os
import re
import shutil
import subprocess
import sys

import datasets
import pytest
from conftest import ROOT
from PIL import Image

DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "yours.md").read_text(), re.S)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with all changes of the page."""
    copy = tmp_path_factory.mktemp("yours") / "project"
    keep = shutil.ignore_patterns(".git", ".venv", "runs", "tests", "*.png", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=keep)
    for diff in DIFFS:
        done = subprocess.run(
            ["git", "apply", "-C1", "-"], cwd=copy, input=diff, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{diff}\n{done.stderr}"
    return copy


def run(copy, *command):
    environment = os.environ | {"PYTHONPATH": str(copy)}
    return subprocess.run(
        [sys.executable, *command], cwd=copy, capture_output=True, text=True, env=environment
    )


def test_the_page_has_a_change_of_each_kind():
    assert len(DIFFS) == 6


def test_reward_loss_data_set_and_metric(copy):
    folder = copy / "rows"
    folder.mkdir()
    Image.effect_noise((200, 200), 60).convert("RGB").save(folder / "a.png")
    lines = [f"a.png,What letter is on tile {i}?,A" for i in range(12)]
    (folder / "rows.csv").write_text("\n".join(["image,question,answer", *lines]))
    flags = "--steps 1 --prompts 2 --group 4 --micro_batch 8 --eval_size 0 --threads 1 --out run"
    ours = "--data table --root rows --bonus single --loss_type gspo"
    done = run(copy, "train.py", *ours.split(), *flags.split())
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = map(json.loads, (copy / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["turns"] >= 1 and row["step"] == 1


def test_benchmark_and_tool(copy):
    folder = copy / "signs"
    folder.mkdir()
    Image.new("RGB", (200, 200)).save(folder / "a.png")
    image = {"bytes": (folder / "a.png").read_bytes(), "path": None}
    rows = [{"question": "What?", "answer": "STOP", "category": kind, "image": image} for kind in "ab"]
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "test.parquet"))
    done = run(
        copy,
        "eval.py",
        "--data",
        "signs",
        "--root",
        "signs",
        "--model",
        "tiny",
        "--arms",
        "on",
        "--out",
        "scores",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "paper's figures" not in done.stdout
    assert json.loads((copy / "scores" / "eval.json").read_text())["arms"]["on"]["all"]["n"] == 2
    told = "from options.toolbox import named; print(named('zoom,flip')[1].name)"
    assert run(copy, "-c", told).stdout.strip() == "image_flip_tool"
