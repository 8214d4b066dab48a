"""Left out of the tests, and run by `pytest -m slow`: kills at random moments, long runs, many bad rows."""

import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from PIL import Image
from scripts import run_script
from test_safe import strict_rows

from safe.checkpoints import fault

pytestmark = pytest.mark.slow
KILLS = 20  # of each command
TRAIN = "train.py --prompts 2 --group 4 --micro_batch 8 --steps 5000 --eval_size 20 --threads 1"
SELECT = "select_data.py --data toy-mixture --limit 3000 --chunk 16 --k 2 --threads 1"
EVAL = "eval.py --data toy --limit 1500 --batch 16 --arms on,off,forced,blank,random --model tiny --threads 1"


def killed(command: list[str], seconds: float) -> int:
    """Start a command, kill it and all it has started after so long; its exit code, -9 if it was killed."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def kill_often(command: list[str], at_rest) -> None:
    """Kill a command at KILLS moments, most of them at work. at_rest() is held after each."""
    rng = random.Random(0)
    for _ in range(KILLS):
        code = killed(command, rng.uniform(3, 9))
        assert code == -signal.SIGKILL, f"it ended by itself with {code}: too little work for the kills"
        at_rest()


def test_train_killed_again_and_again(tmp_path):
    out = tmp_path / "run"

    def at_rest():
        for checkpoint in out.glob("checkpoint-*"):
            assert fault(checkpoint) == ""

    begin = [*shlex.split(TRAIN), "--out", str(out)]
    # Before args.json is written there is nothing to go on with.
    while not (out / "args.json").exists():
        killed(begin, 15)
    go_on = ["train.py", "--out", str(out), "--resume"]
    kill_often(go_on, at_rest)
    reached = len(strict_rows(out / "metrics.jsonl"))
    done = run_script(*go_on, "--steps", reached + 20)
    assert done.returncode == 0, done.stderr
    steps = [row["step"] for row in strict_rows(out / "metrics.jsonl")]
    print(f"{KILLS} kills in {reached} steps")
    assert reached > 3 * KILLS and steps == list(range(1, reached + 21))
    assert "after" in json.loads((out / "eval.json").read_text())


def test_select_killed_again_and_again(tmp_path):
    out = tmp_path / "chosen"
    command = [*shlex.split(SELECT), "--out", str(out)]
    kill_often(command, lambda: None)
    parts = len(list((out / "parts").iterdir()))
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    print(f"{KILLS} kills in {parts} parts")
    assert parts > KILLS
    summary = json.loads((out / "summary.json").read_text())
    assert summary["scored"] == 3000


def test_eval_killed_again_and_again(tmp_path):
    out = tmp_path / "scores"
    command = [*shlex.split(EVAL), "--out", str(out)]
    kill_often(command, lambda: None)
    before = (out / "records.jsonl").read_text().count("\n")
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    print(f"{KILLS} kills in {before} answers")
    rows = strict_rows(out / "records.jsonl")
    asked = [(row["arm"], row["id"]) for row in rows]
    assert before > 10 * KILLS
    assert len(asked) == len(set(asked)) == 7500


def test_two_thousand_steps_grow_by_little(tmp_path):
    out = tmp_path / "run"
    flags = "--prompts 1 --group 2 --micro_batch 2 --max_turns 1 --max_turn_tokens 4 --eval_size 0"
    flags += " --save_every 500 --threads 1 --guard off"
    done = run_script("train.py", *shlex.split(flags), "--steps", 2000, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = strict_rows(out / "metrics.jsonl")
    assert len(rows) == 2000
    early = sorted(row["sec_rollout"] + row["sec_train"] for row in rows[100:400])[150]
    late = sorted(row["sec_rollout"] + row["sec_train"] for row in rows[-300:])[150]
    print(f"a step took {early:.3f} s at first, {late:.3f} s in the end")
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"at most {largest:.0f} MB")
    assert largest < 1500


def test_a_tenth_of_bad_rows_over_a_whole_run(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rng = random.Random(1)
    Image.new("RGB", (300, 300), (200, 40, 40)).save(folder / "good.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    bad = [
        {"image": "nowhere.png", "question": "?", "answer": "A"},
        {"image": "broken.png", "question": "?", "answer": "A"},
        {"image": "good.png", "question": "", "answer": "A"},
        {"image": "good.png", "answer": "A"},
        {"image": "good.png", "question": "?", "answer": "A", "boxes": [[9, 9, 1, 1]]},
    ]
    rows = []
    for number in range(400):
        good = {"image": "good.png", "question": f"What letter is on tile {number}?", "answer": "A"}
        rows.append(rng.choice(bad) if rng.random() < 0.1 else good)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text + "{not json\n")
    flags = "--model tiny --prompts 2 --group 4 --micro_batch 8 --steps 60 --eval_size 10 --threads 1"
    began = time.time()
    done = run_script("train.py", *shlex.split(flags), "--data", folder, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert len(strict_rows(tmp_path / "run" / "metrics.jsonl")) == 60
    print(f"{time.time() - began:.0f} s")
