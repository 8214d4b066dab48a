"""The paper's own files, small: what is written, what rows can teach, and the limits that fit them."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image
from scripts import run_script

from config import BIG, PAPER_TRAINING, PRESETS, TrainConfig, rollout_limits
from data import Sample, load
from engine.families import QWEN2_5_VL
from grading.correct import is_correct
from machine import row_estimate
from model import load_model
from rollout import ZoomEnv, rollout
from toy.rehearsal import FILES, write
from toy.world import LETTERS
from training.settle import read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    for name, (source, _) in FILES.items():
        write(folder / name, source, 30, seed=5)
    return folder


def test_rows_are_read_as_the_papers_are(folder):
    samples = load("deepeyes", root=str(folder))
    assert Counter(sample.source for sample in samples) == {"vstar": 30, "chart": 30, "thinklite_eureka": 30}
    for sample in samples:
        assert sample.tool == (sample.source != "thinklite_eureka")
        assert bool(sample.options) == (sample.source != "vstar")
        assert not sample.options or sample.answer in sample.options
        assert sample.meta["kind"] == sample.source


def test_short_answers_to_sentences_are_paid_and_wrong_ones_never(folder):
    for sample in load("deepeyes", root=str(folder)):
        if sample.source == "vstar":
            gold = sample.answer[-2]
            paid = [letter for letter in LETTERS if is_correct(letter, sample)]
            assert paid == [gold]
            assert is_correct(f"The letter is {gold}.", sample)
        else:
            paid = [option for option in sample.options if is_correct(option, sample)]
            assert paid == [sample.answer]


def test_the_plan_says_what_rows_can_teach(folder):
    samples = load("deepeyes", root=str(folder))
    small = Image.new("RGB", (560, 420))
    long = "An old man in a green coat feeds some pigeons near the fountain."
    samples += [
        Sample("a", small, "?" * 2000, long, source="own"),
        Sample("b", small, "?", "red", source="own"),
    ]
    config = read_config(["--model", "qwen2.5-vl-3b", "--look_share", "1"])
    lines = row_estimate.table(samples, config).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["vstar"][:3] + rows["vstar"][4:] == ["30", "1.000", "1.000", "1.000"]
    assert rows["own"][:3] + rows["own"][4:] == ["2", "0.500", "0.000", "0.500"]
    assert rows["vstar"][3] == "961"  # 31 x 31: of a budget of 1,000
    shrunk = row_estimate.table(samples, replace(config, look_share=0.25)).splitlines()
    assert shrunk[-3].split()[:4] == ["own", "2", "0.500", "1.000"]
    assert "--judge" in shrunk[-2]
    judged = replace(config, judge="http://localhost:1")
    assert "--judge" not in row_estimate.table(samples, judged)


def test_data_sets_side_by_side(folder):
    """By the command of docs/data.md: all sources of what is here, a line for what is not."""
    done = run_script("-m", "machine.row_estimate", "toy", f"deepeyes={folder}", "visualprobe")
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split("  ")[0] == "source" and "look tokens" in head
    assert {line.split()[0] for line in lines[:-1]} == {"toy", "vstar", "chart", "thinklite_eureka"}
    assert "Mini-o3/VisualProbe_train is not on this machine yet" in lines[-1]
    done = run_script("-m", "machine.row_estimate", "nonsense")
    assert done.returncode == 2 and "row_estimate.py: error: unknown data set" in done.stderr.splitlines()[-1]


def test_budgets_without_room_for_a_crop_are_refused():
    area = QWEN2_5_VL.token_area
    big = read_config(["--model", "qwen2.5-vl-3b"])
    assert row_estimate.crops_that_fit(big, area) == big.max_turns - 1
    assert "raise --max_tokens" in row_estimate.crops_text(replace(big, max_tokens=2048), area)
    with pytest.raises(ValueError, match="not one crop"):
        row_estimate.check_crops(replace(big, max_tokens=400))
    row_estimate.check_crops(replace(big, max_tokens=400, tool="off"))


def test_the_papers_protocol_has_room_for_crops():
    """Its budget of 12.8 megapixels a crop is for large images: crops are never enlarged."""
    for preset in PRESETS:
        config = read_config(["--model", preset, "--protocol", "paper"])
        assert (config.crop_pixels, config.max_tokens) == (16384 * 784, 20_480)
        row_estimate.check_crops(config)


def test_rows_without_the_tool_are_shown_whole(model, processor):
    """The share is for zooming: a row that can't zoom would only lose."""
    image = Image.new("RGB", (112, 112), "red")
    limits = {"max_turns": 2, "max_turn_tokens": 4, "max_tokens": 40, "look_share": 0.25}
    looks = []
    for tool in (True, False):
        sample = Sample("1", image, "Which?", "red", tool=tool)
        (trajectory,) = rollout(model, processor, [sample], **limits)
        looks.append(trajectory.images[0].size)
    assert looks == [(56, 56), (112, 112)]
    config = read_config(["--model", "qwen2.5-vl-3b"])
    for tool, hidden in ((True, 1.0), (False, 0.0)):
        sample = Sample("1", image, "?", "A", tool=tool)
        share, tokens = row_estimate.first_looks([sample], config, QWEN2_5_VL)
        assert (share, tokens) == (hidden, 4 if tool else 16)


def test_the_plan_of_a_command(folder):
    done = run_script("train.py", "--data", "deepeyes", "--root", folder, "--plan")
    assert done.returncode == 0, done.stderr
    assert "vstar" in done.stdout and "a completion holds 3 large crops" in done.stdout


def test_two_steps_on_the_papers_rows(folder, tmp_path):
    """All three sources, without a judge: rewards, scores and metrics by source."""
    flags = "--steps 2 --prompts 16 --group 2 --micro_batch 16 --eval_size 4 --threads 1"
    paper = ["--data", "deepeyes", "--root", folder, "--out", tmp_path / "run"]
    done = run_script("train.py", *paper, *flags.split())
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all("accuracy_vstar" in row and row["logp_gap"] < 1e-3 for row in rows)
    assert any(row["accuracy_vstar"] > 0 for row in rows)


def test_the_first_look_has_a_fraction_of_the_images_own_pixels():
    _, processor = load_model("tiny")
    sample = Sample("a", Image.new("RGB", (640, 480)), "What is it?", "A")
    limits = replace(read_config(["--model", "qwen2.5-vl-3b"]), engine="generate")
    env = ZoomEnv(processor, limits)
    env.reset(sample, [])
    width, height = env.trajectories[0].images[0].size
    assert 0.8 * 640 * 480 / 4 < width * height <= 640 * 480 / 4
    assert env.views[0].original.size == (640, 480)


@pytest.mark.parametrize("engine", ["generate", "slots"])
def test_rows_without_the_tool_have_a_limit_of_their_own(engine):
    model, processor = load_model("tiny")
    plain = Sample("a", Image.new("RGB", (64, 64)), "What letter is on the red tile?", "A", tool=False)
    zooms = replace(plain, id="b", tool=True)
    limits = rollout_limits(TrainConfig(max_turn_tokens=3, max_plain_tokens=7, engine=engine, threads=1))
    first, second = rollout(model, processor, [plain, zooms], temperature=1.0, seed=0, **limits)
    assert (first.stop, len(first.completion_ids)) == ("length", 7)
    assert (second.stop, len(second.completion_ids)) == ("length", 3)


def test_the_papers_protocol_sets_what_was_not_given():
    paper = read_config(["--model", "qwen2.5-vl-3b", "--protocol", "paper", "--group", "4"])
    for name, value in PAPER_TRAINING.items():
        assert getattr(paper, name) == (4 if name == "group" else value)
    assert paper.lr == BIG["lr"]


def test_a_run_of_before_keeps_its_first_look(tmp_path):
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (tmp_path / "args.json").write_text(json.dumps({"model": "qwen2.5-vl-3b", "look_pixels": 784000}))
    from evaluation.settle import read_config as read_eval_config

    config = read_eval_config(["--model", str(checkpoint)])
    assert (config.look_share, config.max_plain_tokens) == (1.0, 0)
