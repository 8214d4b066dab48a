"""What the tests of the pretend card count on it, in a process of its own.

python tests/pretend_card.py tests/card_checks.py CHECK MODEL     # prints one JSON object
"""

import gc
import json
import sys
import tempfile
import warnings
from contextlib import redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path

import pretend_card
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import doctor
import engine.slots
from data import load
from engine.slots import SlotEngine
from evaluation.scores import answer_records
from machine import time_estimate
from model import load_model, prepare_libraries
from rollout import rollout
from safe.files import read_rows
from safe.memory import in_memory
from select_data import SelectConfig, score_chunk
from train import build_trainer
from training.settle import read_config

CARD = pretend_card.card
LIMITS = {
    "max_turns": 3,
    "max_turn_tokens": 40,
    "max_tokens": 300,
    "look_pixels": 50176,
    "crop_pixels": 16384,
}
RUN = {"steps": 2, "prompts": 2, "group": 4, "batch": 8, "micro_batch": 4, "eval_size": 0, "guard": "off"}
PARTS = {"update": "backward_over", "rollout": "sample_in_memory"}  # methods of the trainer


class Watched:
    """Calls of a method or function go through `call`."""

    def __init__(self, owner, name: str):
        self.plain = getattr(owner, name)

        def watched(*args, **more):  # of a class Python makes it a method, with the object as first argument
            return self.call(*args, **more)

        setattr(owner, name, watched)


class Counted(Watched):
    """How often it is called, and in these calls: how often the host waits, copies to the card apart."""

    calls = waits = copies = 0

    def call(self, *args, **more):
        waits = CARD.other_waits()
        copies = CARD.copies()
        result = self.plain(*args, **more)
        self.calls += 1
        self.waits += CARD.other_waits() - waits
        self.copies += CARD.copies() - copies
        return result

    def per(self, calls: int) -> dict[str, float]:
        return {"waits": self.waits / calls, "copies": self.copies / calls}


class Failing(Watched):
    """The n-th allocation of its first call fails, if n is not 0. Of the first call that ends well,
    `allocations` says how many it made, and `grown` how many bytes more are held than before the first."""

    n = 0
    before = allocations = None

    def call(self, *args, **more):
        if self.allocations is not None:
            return self.plain(*args, **more)
        gc.collect()
        if self.before is None:
            self.before = CARD.used
        first = CARD.allocations
        if self.n:
            CARD.fail_at(self.n)
            self.n = 0
        result = self.plain(*args, **more)
        self.allocations = CARD.allocations - first
        gc.collect()
        self.grown = CARD.used - self.before
        return result


def as_flags(given: dict) -> list[str]:
    return [word for flag, value in given.items() for word in (f"--{flag}", str(value))]


def make_trainer(name: str, model, processor, folder: str):
    argv = as_flags(LIMITS | RUN | {"model": name, "out": folder, "threads": 1, "show_every": 1000})
    return build_trainer(read_config(argv), model, processor, load("toy", limit=64), Path(folder))


def count_waits(name: str) -> dict:
    """A decode step, a batch of images from their pixels to their features, an update pass."""
    model, processor = load_model(name)
    steps = Counted(SlotEngine, "next_tokens")
    run = Counted(SlotEngine, "run")
    between = [Counted(SlotEngine, method) for method in ("prefill_waiting", "end_turns")]
    images = Counted(engine.slots, "encode_images")
    rollout(model, processor, load("toy", limit=8), engine="slots", group=4, seed=1, **LIMITS)
    for part in between:
        run.waits -= part.waits
        run.copies -= part.copies
    found = {"step": run.per(steps.calls), "images": images.per(images.calls)}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(name, model, processor, folder)
        update = Counted(trainer, "backward_over")
        trainer.train()
    return found | {"update": update.per(update.calls)}


def train_failing(name: str, place: str = "", n: int = 0) -> tuple[list[dict], dict[str, Failing]]:
    """The rows of two steps, in which the n-th allocation of a part fails."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(name, *load_model(name), folder)
        parts = {part: Failing(trainer, method) for part, method in PARTS.items()}
        if place:
            parts[place].n = n
        trainer.train()
        return read_rows(Path(folder) / "metrics.jsonl"), parts


def fail_training(name: str) -> dict:
    """Memory that fails at the first, at two middle ones and at the last allocation of a part: how far the
    losses are from those without, and what more is held afterwards."""
    rows, parts = train_failing(name)
    found = {}
    for place, part in parts.items():
        total = part.allocations
        for n in (1, total // 3, 2 * total // 3, total):
            with redirect_stdout(StringIO()) as said:
                again, failing = train_failing(name, place, n)
            gaps = [abs(row["loss"] - other["loss"]) for row, other in zip(rows, again, strict=True)]
            told = said.getvalue().count("out of memory")
            more = failing[place].grown - part.grown
            found[f"{place} {n}/{total}"] = {"gap": max(gaps), "told": told, "more": more}
    return found


def retried(work, patient) -> dict[str, dict]:
    """What `patient` returns, and how often it says that memory ran out, where the first, the middle or the
    last allocation of `work` fails. In a capture it says that there is no graph, and goes on."""
    before = CARD.allocations
    work()
    total = CARD.allocations - before
    found = {}
    for n in (1, total // 2, total):
        CARD.fail_at(n)
        with redirect_stdout(StringIO()) as said, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            again = patient()
        told = said.getvalue().count("out of memory")
        told += sum("without a CUDA graph" in str(warning.message) for warning in warned)
        found[f"{n}/{total}"] = {"again": again, "told": told}
    return found


def fail_scores(name: str) -> dict:
    """Greedy answers, and a chunk of select_data.py, where memory fails."""
    model, processor = load_model(name)
    samples = load("toy", limit=4)
    config = SelectConfig(model=name, data="toy", k=4, batch=16, **LIMITS)

    def score(batch: int = 8) -> list[str]:
        records = answer_records(model, processor, samples, "on", engine="slots", batch=batch, **LIMITS)
        return [record["answer"] for record in records]

    def select() -> list[dict]:
        return score_chunk(model, processor, samples, config, 0)

    scores = retried(score, partial(in_memory, score, 8))
    return {"plain": score(), "scores": scores, "selected": retried(select, select)}


def run_doctor(name: str) -> dict:
    """doctor.py --full, but for the speed of the card: large products in bfloat16 take a CPU minutes."""
    time_estimate.device_speed = lambda device, dtype: time_estimate.Speed(1e11, 1e13, 1e-5)
    with redirect_stdout(StringIO()) as said:
        argv = ["--full", "--data", "toy", "--model", name, "--threads", "1", *as_flags(LIMITS | RUN)]
        with suppress(SystemExit):  # 1: the tiny model does not know looks of this size, and points anywhere
            doctor.main(doctor.read_config(argv))
    return {"said": said.getvalue()}


CHECKS = {"doctor": run_doctor, "waits": count_waits, "training": fail_training, "scores": fail_scores}

if __name__ == "__main__":
    prepare_libraries(1)
    print(json.dumps(CHECKS[sys.argv[1]](sys.argv[2])))
