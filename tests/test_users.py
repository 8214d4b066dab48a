"""Where users stumbled: seeds in a night, a typo, a name of another program, one image of one's own."""

import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import ROOT
from scripts import Script
from test_safe import SMALL, as_before
from test_train import build, metrics, random_turn  # noqa: F401
from transformers import TrainerCallback

import benchmarks
import config
import tools
from config import TrainConfig
from data import Sample, load
from eval import unlike_paper
from evaluation.ask import answer_text
from rollout import Trajectory
from runlog.compare import comparison, scores_text
from safe.files import write_json
from training.settle import read_config

NIGHT = ["--seeds", "0,1", "--steps", "2", *SMALL, "--eval_size", "4"]


def run(script, *arguments, cwd=ROOT, **more):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **more)


@pytest.mark.slow
def test_a_night_of_seeds_killed_and_run_again_unchanged(tmp_path):
    """Killed in the second run; the same command ends with both and one page."""
    log = tmp_path / "log"
    first = Script("train.py", *NIGHT, "--out", "night", cwd=tmp_path, out=log, err=log)
    second_run = tmp_path / "night-seed1" / "args.json"
    for _ in range(6000):  # a busy machine takes minutes
        if second_run.exists() or first.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert second_run.exists(), log.read_text()
    done = run("train.py", *NIGHT, "--out", "night", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for seed in range(2):
        folder = tmp_path / f"night-seed{seed}"
        assert [row["step"] for row in metrics(folder)] == [1, 2]
        assert json.loads((folder / "args.json").read_text())["seed"] == seed
    names = glob.glob(str(tmp_path / "night-seed*"))  # what the README gives to report.py and study.py
    assert sorted(Path(name).name for name in names) == ["night-seed0", "night-seed1"]
    assert re.search(r"after: on +2 ", done.stdout) and "night-all.html" in done.stdout
    page = (tmp_path / "night-all.html").read_text()
    assert "night-seed0" in page and "night-seed1" in page


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--seeds", "0,1", "--seed", "1"], "give one of them"),
        (["--seeds", "0;1"], "numbers with commas"),
        (["--seeds", "-1"], "numbers with commas"),
        (["--seeds", "0,00"], "give each once"),
        (["--device", "cuda"], "CUDA_VISIBLE_DEVICES"),
        (["--learning_rate", "1"], "did you mean --lr?"),
        (["--output_dir=x"], "did you mean --out?"),
        (["--max_steps", "3"], "did you mean --steps?"),
        (["--epochs", "3"], "did you mean --steps?"),
        (["--num_generations", "3"], "did you mean --group?"),
        (["--batch_size", "3"], "did you mean --prompts?"),
        (["--max_samples", "3"], "did you mean --limit?"),
        (["--wandb"], "did you mean --report_to?"),
        (["--report_to", "wandb"], "pip install wandb"),
        (["--data", "deepeye"], "did you mean deepeyes?"),
        (["--data", "vstar"], "eval.py --data vstar"),
    ],
)
def test_what_was_meant_is_said_before_anything_is_loaded(argv, said, capsys):
    with pytest.raises(SystemExit) as end:
        read_config(argv)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and said in lines[0]


@pytest.mark.parametrize("script", ["train.py", "eval.py", "select_data.py"])
def test_a_typo_costs_no_heavy_import(script):
    code = f"""
import runpy, sys
sys.argv = [{script!r}, "--typo"]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["2", "False"], done.stderr
    assert len(done.stderr.splitlines()) == 1 and "--typo" in done.stderr


def test_help_has_both_values_and_the_plan_all_flags(tmp_path):
    text = " ".join(run("train.py", "--help").stdout.split())
    for name, value in config.big_values(TrainConfig).items():
        usual = getattr(TrainConfig(), name)
        assert f"(big: {value}) (default: {usual})" in text, name
    plan = run("train.py", "--model", "qwen2.5-vl-7b", "--plan").stdout
    for flag in ("--lr 2e-05", "--batch 32", "--quantize 4bit", "--crop_pixels 313600"):
        assert flag in plan
    assert "expected peak" in plan and "hours for 80 steps" in plan


def test_names_that_are_known_before_anything_heavy_is_imported():
    rooms = {"looking": benchmarks.LOOKING, "grounding": benchmarks.GROUNDING}
    rooms["reasoning"] = benchmarks.REASONING
    kinds = {name: kind for kind, records in rooms.items() for name in records}
    assert kinds == config.BENCHMARK_KINDS and kinds.keys() == benchmarks.BENCHMARKS.keys()


def test_a_tracker_gets_the_whole_row(build, script, tmp_path):  # noqa: F811
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **more):
            seen.append(dict(logs))

    script(random_turn)
    trainer = build(steps=2)
    trainer.add_callback(Tracker())
    trainer.train()
    rows = metrics(tmp_path)
    assert len(seen) == len(rows) == 2
    for logs, row in zip(seen, rows):
        known = {key: value for key, value in row.items() if value is not None}
        assert known.items() <= logs.items() and "learning_rate" in logs
    assert trainer.state.log_history == []  # it would be written with every checkpoint


def test_runs_that_differ_in_their_seed_are_one_row(tmp_path):
    for name, seed, bonus, right in (
        ("a", 0, "none", 0.8),
        ("b", 1, "none", 0.9),
        ("c", 0, "x", 0.5),
    ):
        run_folder = tmp_path / name
        run_folder.mkdir()
        args = {"seed": seed, "bonus": bonus, "out": name, "model": "tiny", "data": "toy"}
        (run_folder / "args.json").write_text(json.dumps(args))
        summary = {"accuracy": right, "tool_rate": 1.0}
        scores = {"after": {"on": {"all": summary, "read": summary}}, "before": {}}
        (run_folder / "eval.json").write_text(json.dumps(scores))
    folders = [tmp_path / name for name in "abc"]
    titles, groups = comparison(folders)
    assert titles == ["arm", "runs", "all", "read"]
    assert groups == {
        "bonus none": [["after: on", "2", "0.85 (0.80 to 0.90)", "0.85 (0.80 to 0.90)"]],
        "bonus x": [["after: on", "1", "0.50", "0.50"]],
    }
    _, alone = comparison(folders[:2])  # nothing but the seed differs
    assert {group: row[:2] for group, (row,) in alone.items()} == {"tiny on toy": ["after: on", "2"]}
    others = [
        tmp_path / "x" / "eval",
        tmp_path / "y" / "eval",
    ]  # of eval.py: no seeds of one another
    for folder in others:
        folder.mkdir(parents=True)
        scores = {"arms": {"on": {"all": {"accuracy": 0.5, "tool_rate": 1.0}}}}
        (folder / "eval.json").write_text(json.dumps(scores))
    _, groups = comparison([*folders, *others])
    assert list(groups)[2:] == ["x/eval", "y/eval"]
    assert groups["x/eval"] == [["on", "1", "0.50", "-"]]
    text = scores_text(folders)
    assert "0.85 (0.80 to 0.90)" in text and text.count("after: on") == 2


def test_a_run_of_before_is_compared_by_its_flags_of_now(tmp_path):
    """An old run with a price on crops, and one of now: nothing but the seed differs."""
    flags = asdict(TrainConfig(bonus="none", crop_price=0.05))
    other = asdict(TrainConfig(bonus="none", crop_price=0.1, seed=1))
    for name, args in (("old", as_before(flags)), ("new", flags | {"seed": 1}), ("other", other)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "args.json", args | {"out": name})
        summary = {"accuracy": 0.5, "tool_rate": 1.0}
        write_json(tmp_path / name / "eval.json", {"after": {"on": {"all": summary}}})
    _, groups = comparison([tmp_path / "old", tmp_path / "new"])
    ((both,),) = groups.values()
    assert both[1] == "2"
    _, groups = comparison([tmp_path / name for name in ("old", "new", "other")])
    assert {group: row[1] for group, (row,) in groups.items()} == {
        "crop_price 0.05": "2",
        "crop_price 0.1": "1",
    }


def test_the_papers_figures_come_with_what_differs():
    protocol = {"model": "tiny", "look_pixels": 12544, "options": "shuffled by item"}
    found = ", ".join(unlike_paper(protocol))
    assert "model tiny" in found and "look_pixels 12544 (paper: 12845056)" in found
    assert "options shuffled" in found


# --------------------------------------------------------------------------------------------------
# One image.


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photo")
    sample = next(s for s in load("toy", split="test", limit=20) if s.meta["kind"] == "read")
    sample.open().save(folder / "photo.jpg")
    return folder


def test_answers_stay_out_of_other_folders(photo, tmp_path, here):
    (tmp_path / "args.json").write_text("{}")
    argv = ["--model", "tiny", "--ask", "photo.jpg", "What?", "--out", tmp_path]
    done = here("eval.py", *argv, cwd=photo)
    assert done.returncode == 2 and "folder of another run" in done.stderr


def test_asking_needs_a_model(photo, here):
    done = here("eval.py", "--ask", "photo.jpg", "What?", cwd=photo)
    assert done.returncode == 2 and "--model" in done.stderr


def test_questions_one_after_the_other(photo):
    """Read line by line; a line that can't be asked costs itself alone; all stand on one page."""
    lines = "What letter is on the red tile?\n<|image_pad|>\nWhat letter is on the blue tile?\n\nnever\n"
    argv = ["--model", "tiny", "--ask", "photo.jpg", "--threads", "1"]
    done = run("eval.py", *argv, cwd=photo, input=lines)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    assert done.stdout.count("answer:") == 2 and "not asked: the question holds special" in done.stdout
    assert "right" not in done.stdout
    page = (photo / "runs" / "ask-tiny" / "report.html").read_text()
    assert "the red tile" in page and "the blue tile" in page and "never" not in page


def test_a_refused_call_is_shown_with_its_reason(photo):
    trajectory = Trajectory(Sample("1", b"", "?", "?"), [])
    trajectory.turns = ["<tool_call>no</tool_call>", "<answer>A</answer>"]
    trajectory.calls = [tools.Call(error="the tool call is not valid JSON.")]
    trajectory.answer = "A"
    trajectory.stop = "answer"
    text = answer_text(trajectory)
    assert (
        "-> refused: the tool call is not valid JSON." in text and "answer: A (images looked at: 0)" in text
    )
