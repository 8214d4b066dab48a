"""Our agent loop in verl 0.9.1 itself, on a CPU: its reader, worker, padding, positions, reward, Ray actor.

verl has an environment of its own, since it wants an older transformers (docs/scaling.md). Left out unless
asked for; VERL_PYTHON names that environment's Python:

    VERL_PYTHON=verl-env/bin/python .venv/bin/pytest -m verl -n 0 tests/test_verl.py
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trl
from conftest import ROOT
from verl_limits import LIMITS

from data import Sample, load
from engine.families import QWEN2_5_VL
from model import load_model, merge
from reward import score
from rollout import rollout
from select_data import export_verl

pytestmark = pytest.mark.verl


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model after 25 steps, which zooms, and rows for it, one of them without the tool."""
    folder = tmp_path_factory.mktemp("verl")
    train = ["train.py", "--steps", "25", "--eval_size", "0", "--out", folder / "run", "--save_every", "25"]
    subprocess.run([sys.executable, *train], cwd=ROOT, check=True, capture_output=True)
    merge(str(folder / "run/checkpoint-25"), folder / "model")
    as_on_the_hub(folder / "model")
    samples = load("toy-mixture", split="test", limit=6)
    asked = samples[0]
    samples.append(Sample("plain", asked.image, asked.question, asked.answer, asked.options, tool=False))
    export_verl(samples, folder / "verl.parquet")
    return folder, samples


def as_on_the_hub(model: Path) -> None:
    """With the files in which verl looks for image processor and chat template."""
    (model / "processor_config.json").unlink()
    public = QWEN2_5_VL.image_processor_kwargs | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (model / "preprocessor_config.json").write_text(json.dumps(public))
    names = model / "tokenizer_config.json"
    names.write_text(names.read_text().replace("ZoomProcessor", "Qwen2_5_VLProcessor"))
    shutil.copy(Path(trl.__path__[0]) / "chat_templates/qwen2_5_vl.jinja", model / "chat_template.jinja")


def in_verl(*given) -> dict:
    command = [os.environ["VERL_PYTHON"], ROOT / "tests/verl_worker.py", *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("where", ["plain", "ray"])
def test_greedy_it_is_our_rollout(trained, where):
    """The same ids, masks and rewards, across two versions of transformers, with either engine of ours."""
    folder, samples = trained
    found = in_verl(folder / "model", folder / "verl.parquet", 0.0, where)
    assert found["rows"] == len(samples)
    model, processor = load_model(str(folder / "model"))
    for engine in ("generate", "slots"):
        ours = rollout(model, processor, samples, temperature=0.0, engine=engine, **LIMITS)
        for theirs, trajectory in zip(found["trajectories"], ours + ours, strict=True):
            assert theirs["ids"] == trajectory.completion_ids
            assert theirs["sampled"] == trajectory.sampled
            assert theirs["reward"] == pytest.approx(score(trajectory).total)
            assert theirs["crops"] == trajectory.delivered
    assert sum(trajectory.delivered for trajectory in ours) >= 3
    assert found["gap"] < 1e-5


def test_what_is_sampled_is_what_is_trained_on(trained):
    """At temperature 1, over the tokens in the loss, on verl's own training batch."""
    folder, _ = trained
    found = in_verl(folder / "model", folder / "verl.parquet", 1.0, "plain")
    assert found["gap"] < 1e-5
    assert any(trajectory["crops"] for trajectory in found["trajectories"])
    assert any(trajectory["reward"] for trajectory in found["trajectories"])


def test_the_recipes_are_what_verl_takes(trained):
    """The paper's: 256 questions x 16, lr 1e-6, all weights, no KL, no entropy term, 32 cards."""
    folder, samples = trained
    files = (folder / "model", folder / "verl.parquet")
    lora = in_verl("recipe", "lora", *files)
    assert lora == {
        "cards": 8,
        "trajectories": 1024,
        "lengths": [4096, 3072],
        "lora": 32,
        "lr": 2e-5,
        "kl": [False, False, 0],
        "rows": [len(samples), 1],
        "saves": 8,
        "loop": "zoom",
    }
    paper = {"cards": 32, "trajectories": 4096, "lengths": [8192, 20480], "lora": 0, "lr": 1e-6}
    assert in_verl("recipe", "paper", *files) == lora | paper | {"loop": "zoom_paper"}
