"""The selection: outcomes, the real command, kills and resumes, shards, and what it keeps of the mixture."""

import io
import json
import os
import random
import shutil
import signal
import time
from collections import Counter

import datasets
import pytest
from PIL import Image
from scripts import Script, run_script

import select_data
from data import Sample, load
from grading.correct import verifiable
from select_data import SelectConfig, open_ended, outcome_of

SMALL = ["--k", "2", "--chunk", "4", "--limit", "24", "--threads", "1"]


def run(*arguments, launcher=(), **kwargs):
    return run_script(*launcher, "select_data.py", *arguments, **kwargs)


def row(look, crop, source="toy", checked=True):
    return {"p_look": look, "p_crop": crop, "source": source, "verifiable": checked}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (row(0.1, 1.0), "kept"),
        (row(0.0, 1.0), "kept"),  # always wrong at first sight, rescued by the crop
        (row(1.0, 1.0), "too easy"),
        (row(0.9, 1.0), "the crop does not help"),
        (row(0.0, 0.1), "not even with the crop"),
        (row(0.5, None), "kept"),
        (row(0.0, None), "too hard"),
        (row(0.5, 0.5, "chart"), "kept"),
        (row(0.1, 1.0, checked=False), "rules can't check it"),
    ],
)
def test_outcomes(scores, expected):
    assert outcome_of(scores, SelectConfig()) == expected


def test_difficulty_alone():
    config = SelectConfig(only_difficulty=True)
    assert [outcome_of(row(*p), config) for p in ((0.1, 0.0), (0.0, 1.0), (1.0, 1.0))] == [
        "kept",
        "too hard",
        "too easy",
    ]


def test_multiple_choice_turns_open_ended_only_where_that_is_safe():
    question = dict(id="1", image=b"", answer="red", options=("red", "blue"))
    assert open_ended(Sample(question="Which colour?", **question)).options == ()
    assert open_ended(Sample(question="Which of the following is true?", **question)).options
    assert open_ended(Sample(question="Which?", **question | {"answer": "A"})).options  # only a letter
    assert verifiable(Sample(question="Which?", **question))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("selected") / "run"
    result = run("--out", out, "--export", "verl", *SMALL)
    assert result.returncode == 0, result.stderr
    return out


def scores(out):
    return datasets.Dataset.from_parquet(str(out / "scores.parquet")).to_list()


def test_files_and_their_contents(undisturbed):
    rows, summary = scores(undisturbed), json.loads((undisturbed / "summary.json").read_text())
    assert len(rows) == 24 == summary["scored"] and summary["kept"] == sum(
        r["verdict"] == "kept" for r in rows
    )
    assert all(len(r["answers_look"]) == len(r["answers_crop"]) == 2 for r in rows)
    selected = load(str(undisturbed))
    source = {s.id: s for s in load("toy-mixture", split="train", limit=24)}
    assert len(selected) == summary["kept"]
    for sample in selected:
        original = source[sample.id]
        assert (sample.question, sample.answer, sample.boxes) == (
            original.question,
            original.answer,
            original.boxes,
        )
        assert sample.open().tobytes() == original.open().tobytes()
        assert sample.meta["kind"] == original.meta["kind"]
    verl = datasets.Dataset.from_parquet(str(undisturbed / "verl.parquet"))
    assert set(verl.column_names) == {
        "prompt", "images", "reward_model", "extra_info", "data_source", "ability", "env_name",
    }  # fmt: skip
    assert len(verl) == len(selected)
    for row, sample in zip(verl, selected):
        assert row["prompt"][1]["content"].startswith(f"<image>\n{sample.question}\nThink first")
        assert row["reward_model"]["ground_truth"] == sample.answer and row["images"][0]["bytes"]


def test_what_is_exported_shows_others_the_same(tmp_path):
    """By the bytes alone, as verl reads them: files of one's own, plain, turned by a camera, transparent."""
    photo = Image.effect_noise((80, 60), 60).convert("RGB")
    photo.save(tmp_path / "plain.jpg")
    turned = Image.Exif()
    turned[select_data.ORIENTATION] = 6
    photo.save(tmp_path / "turned.jpg", exif=turned)
    Image.new("RGBA", (80, 60), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (80, 60), (200, 0, 0)).save(tmp_path / "keyed.png", transparency=(200, 0, 0))
    rows = [
        {"image": "plain.jpg", "question": "Which?", "answer": "B", "options": ["red", "blue"]},
        {"image": "turned.jpg", "question": "What?", "answer": "a cup", "boxes": [[1, 2, 30, 40]]},
        {"image": "clear.png", "question": "How many?", "answer": "3", "tool": False},
        {"image": "keyed.png", "question": "What?", "answer": "sofa", "accepted": ["couch"]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = load(str(tmp_path))
    select_data.export_verl(samples, tmp_path / "verl.parquet")
    for row, sample in zip(
        datasets.Dataset.from_parquet(str(tmp_path / "verl.parquet")), samples, strict=True
    ):
        (image,) = row["images"]
        seen = Image.open(io.BytesIO(image["bytes"])).convert("RGB")
        assert seen.size == sample.open().size and seen.tobytes() == sample.open().tobytes()
        extra = row["extra_info"]
        assert (extra["id"], extra["options"]) == (sample.id, list(sample.options))
        assert (extra["accepted"], extra["without_options"]) == (list(sample.accepted), sample.question)
        assert (extra["boxes"], extra["tool"]) == ([list(box) for box in sample.boxes], sample.tool)
    assert samples[1].open().size == (60, 80) and not samples[2].tool


def test_what_it_keeps_needs_the_zoom(tmp_path):
    """95 % of what is kept needs a zoom, 70 % of what needs one is kept, 5 % of the broken at most; and
    train.py takes it."""
    out = tmp_path / "selected"
    done = run("--out", out, "--limit", "320", "--seed", "9", "--threads", "2")
    assert done.returncode == 0, done.stderr
    rows = scores(out)
    everything = Counter(row["kind"] for row in rows)
    kept = Counter(row["kind"] for row in rows if row["verdict"] == "kept")
    need = ("read", "compare")
    assert sum(kept[kind] for kind in need) >= 0.95 * kept.total(), kept
    assert sum(kept[kind] for kind in need) >= 0.7 * sum(everything[kind] for kind in need), kept
    broken = ("mislabelled", "blank")
    assert sum(kept[kind] for kind in broken) <= 0.05 * sum(everything[kind] for kind in broken), kept
    flags = ["--data", out, "--steps", 1, "--prompts", 4, "--eval_size", 0, "--out", tmp_path / "run"]
    trained = run_script("train.py", *flags)
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_killed_at_random_moments_and_resumed(undisturbed, tmp_path):
    """Five kills; the scores equal those of the undisturbed run."""
    out, rng = tmp_path / "run", random.Random(time.time())
    for kill in range(5):
        process = Script("select_data.py", "--out", out, *SMALL)
        began = time.time()
        while not len(list((out / "parts").glob("*.json"))) > kill and process.poll() is None:
            time.sleep(0.05)
            assert time.time() - began < 120
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {p.name: p.stat().st_mtime_ns for p in (out / "parts").glob("*.json")}
    result = run("--out", out, *SMALL)
    assert result.returncode == 0, result.stderr
    assert scores(out) == scores(undisturbed)
    assert all((out / "parts" / name).stat().st_mtime_ns == then for name, then in before.items())


def test_two_shards_equal_one_run(undisturbed, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = run("--out", tmp_path / "run", *SMALL, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert scores(tmp_path / "run") == scores(undisturbed)


def test_rescoring_needs_no_model(undisturbed):
    began = time.time()
    result = run("--out", undisturbed, "--rescore", "--gain", "-1", "--solvable", "0", "--easiest", "1")
    assert result.returncode == 0 and "24 of 24 kept" in result.stdout, result.stdout
    assert time.time() - began < 30
    kinds = Counter(s.meta["kind"] for s in load(str(undisturbed)))
    assert kinds == Counter(s.meta["kind"] for s in load("toy-mixture", limit=24))


def test_where_nothing_is_kept_nothing_is_pointed_to(undisturbed, tmp_path):
    """No file, no command that would fail on it; other thresholds bring the file back."""
    out = tmp_path / "copy"
    shutil.copytree(undisturbed, out)
    result = run("--out", out, "--rescore", "--easiest", "-1")
    assert result.returncode == 0, result.stderr
    assert "0 of 24 kept" in result.stdout and "--rescore tries other thresholds" in result.stdout
    assert "train.py" not in result.stdout and "selected.parquet" not in result.stdout
    assert not (out / "selected.parquet").exists()
    again = run("--out", out, "--rescore", "--gain", "-1", "--solvable", "0", "--easiest", "1")
    assert f"train: python train.py --data {out}\n" in again.stdout
    assert str(out / "selected.parquet") in again.stdout and (out / "selected.parquet").exists()


def test_other_flags_than_it_was_scored_with_are_refused(undisturbed):
    result = run("--out", undisturbed, "--k", "3")
    assert result.returncode == 2
    assert "was scored with --" in result.stderr.splitlines()[-1], result.stderr


def test_bad_use_is_one_clear_line(tmp_path, here):
    for arguments, message in (
        (["--out", tmp_path, "--rescore"], "nothing to rescore"),
        (["--export", "csv"], "invalid choice: 'csv'"),
        (["--k", "0"], "at least 1"),
        (["--data", "toyz", "--out", tmp_path / "x"], "unknown data set"),
        (["--data", "vstar", "--out", tmp_path / "x"], "eval.py --data vstar"),
        (["--data", "seal", "--out", tmp_path / "x"], "needs --root"),
    ):
        result = here("select_data.py", *arguments)
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1], result.stderr
    assert not (tmp_path / "x" / "args.json").exists()  # the right command would be refused in this folder
