"""Can this machine do what I want? The answer takes a minute, before anything long is started.

    python doctor.py                          # packages, device, memory, disk, exactness; the tiny model
    python doctor.py --model qwen2.5-vl-3b    # and what a 3B needs: memory, hours, gigabytes to fetch
    python doctor.py --model qwen2.5-vl-3b --full --random_weights       # on a GPU: every part, run once

Each line is a check: "ok", "note" (it will do, but), or "MISSING" (what was asked for can't be done), with a
figure and the remedy. Exit code: 0; 1 if something is missing; 2 for a mistake in the call.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import ClassVar

from config import (
    DATASETS,
    PRESETS,
    TrainConfig,
    check_at_least,
    fill_big,
    fill_limits,
    flag,
    parse,
    run_command,
)
from safe.files import fail, write_json

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as train.py has it where threads take all cores
OK = "ok"
NOTE = "note"
MISSING = "MISSING"
GB = 2**30
LEAST_PYTHON = (3, 11)
EXACT = 1e-3  # most that logprobs of sampler and trainer may differ in float32
ENOUGH_ROWS = 0.5  # of a source: where fewer can teach something, that is noted
WITHIN = 0.3  # of what was predicted, a measured step is as predicted


@dataclass
class Check:
    """A line of what is printed. Where all is ok, no remedy is needed."""

    name: str
    verdict: str
    figure: str
    remedy: str = ""
    to_fetch: float = 0.0  # GB

    def __post_init__(self):
        if self.verdict == OK:
            self.remedy = ""

    def text(self) -> str:
        remedy = f"  ->  {self.remedy}" if self.remedy else ""
        return f"{self.verdict:<8}{self.name:<26}{self.figure}{remedy}"


@dataclass(frozen=True)
class DoctorConfig(TrainConfig):
    """The flags of this script: its own, and those of the run that it is asked about."""

    MOST_USED: ClassVar = "model data full random_weights layers json"

    full: bool = flag(False, "run every part once at these flags (meant for a GPU)")
    random_weights: bool = flag(False, "with --full: the model's shapes, fresh weights")
    layers: int = flag(0, "with --random_weights: layers in each tower (0: all)")
    json: str = flag("", "file for all figures")


def read_config(argv: list[str]) -> DoctorConfig:
    config, given = parse(DoctorConfig, argv, __doc__)
    config = fill_big(fill_limits(config, given), given)
    check_at_least(1, config, "prompts group steps micro_batch batch")
    if config.random_weights and not config.full:
        fail("--random_weights goes with --full: nothing else loads the model")
    return config


# --------------------------------------------------------------------------------------------------
# What is here. Nothing heavy is imported at the top: what is missing must be told, not be a traceback.


def check_python() -> Check:
    verdict = OK if sys.version_info >= LEAST_PYTHON else MISSING
    wanted = ".".join(map(str, LEAST_PYTHON))
    return Check("Python", verdict, platform.python_version(), f"needs {wanted} or newer")


def check_packages() -> list[Check]:
    """What is installed against the pins of requirements.txt: each package that differs, or one line."""
    text = (Path(__file__).parent / "requirements.txt").read_text()
    pins = re.findall(r"^([\w-]+)==([\w.]+)", text, re.M)
    wrong = []
    for name, pinned in pins:
        try:
            version = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        if version != pinned:
            wrong.append(Check(f"package {name}", MISSING, version, f"pip install {name}=={pinned}"))
    return wrong or [Check("packages", OK, f"all {len(pins)} as in requirements.txt")]


def check_device(config: TrainConfig) -> Check:
    import torch

    if not torch.cuda.is_available():
        figure = f"no GPU; {os.cpu_count()} CPU cores"
        if config.model == "tiny":
            return Check("device", OK, f"{figure}: enough for the tiny model")
        return Check("device", NOTE, figure, "this model needs a GPU")
    card = torch.cuda.get_device_properties(0)
    figure = f"{card.name}, {card.total_memory / GB:.1f} GB, capability {card.major}.{card.minor}"
    verdict = OK if card.major >= 8 else MISSING
    return Check("device", verdict, figure, "bfloat16 needs capability 8.0 or newer")


def check_memory(config: TrainConfig) -> Check:
    """Of the machine; a GPU's is the memory plan's business."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    wanted = 4 if config.model == "tiny" else 16
    verdict = OK if total >= wanted else NOTE
    return Check("memory", verdict, f"{total:.0f} GB", f"{wanted} GB and more are wanted")


def disk_gb(config: TrainConfig) -> dict[str, float]:
    """What the weights take on disk, in bfloat16, and what checkpoints do, of adapter and optimiser: the two
    that are kept, and the one that is being written."""
    from machine.memory_estimate import sizes
    from model import config_of

    count = sizes(config_of(config.model))
    weights = 2 * (count["matrices"] + count["embeddings"] + count["vision"])
    return {"weights": weights / GB, "checkpoints": 3 * count["lora"] * config.lora * 12 / GB}


def check_hub(name: str, repository: str, kind: str, file: str, size: float) -> Check:
    """Is a repository in the Hub's cache (this file stands for all), or can it be fetched?

    kind: "model" or "dataset". size: GB, 0 where it is not known.
    """
    from huggingface_hub import HfApi

    from data import is_cached

    if is_cached(repository, kind, file):
        return Check(name, OK, f"in the Hub's cache: {repository}")
    amount = f"{size:.1f} GB to fetch" if size else "to fetch"
    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=10)
    except Exception as error:  # no connection, offline mode, no such repository, no right to it ...
        figure = f"{amount}, but the Hub does not answer ({type(error).__name__})"
        option = "" if kind == "model" else f"--repo-type {kind} "
        remedy = f"where there is a connection: hf download {option}{repository}"
        return Check(name, MISSING, figure, remedy, size)
    return Check(name, NOTE, f"{amount} on the first run: {repository}", to_fetch=size)


def model_source(config: TrainConfig) -> str:
    """The folder or Hub name of the model; "" for what is neither."""
    source = PRESETS[config.model].source if config.model in PRESETS else config.model
    return source if Path(source).expanduser().is_dir() or source.count("/") == 1 else ""


def check_weights(config: DoctorConfig) -> Check:
    source = model_source(config)
    if not source:
        remedy = f"a preset ({', '.join(PRESETS)}), a folder, or OWNER/MODEL"
        return Check("weights", MISSING, f"no such model: {config.model}", remedy)
    if config.random_weights:
        return Check("weights", OK, "random ones, nothing to fetch")
    if Path(source).expanduser().is_dir():
        return Check("weights", OK, f"on disk: {source}")
    size = disk_gb(config)["weights"] if config.model in PRESETS else 0.0
    return check_hub("weights", source, "model", "config.json", size)


def check_data(config: TrainConfig) -> Check:
    from data import GIGABYTES, ON_THE_HUB

    if config.data.startswith("toy"):
        return Check("data", OK, f"{config.data} is drawn, nothing to fetch")
    folder = config.root or config.data
    if Path(folder).is_dir():
        return Check("data", OK, f"on disk: {folder}")
    if config.root:
        return Check("data", MISSING, f"no such folder: {folder}", "--root FOLDER")
    if config.data == "seal":
        remedy = "--root FOLDER with the four .json files and the COCO and GQA images"
        return Check("data", MISSING, "seal is read from a folder", remedy)
    repository = ON_THE_HUB.get(config.data)
    if not repository:
        remedy = f"one of {', '.join(DATASETS)}, or a folder"
        return Check("data", MISSING, f"no such data set: {config.data}", remedy)
    return check_hub("data", repository, "dataset", "README.md", GIGABYTES[repository])


def check_disk(config: TrainConfig, to_fetch: float) -> list[Check]:
    """The folder where runs go, and the Hub's cache if so many GB are to be fetched."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for_runs = disk_gb(config)["checkpoints"] + 0.6
    wanted = [("disk for runs", config.out or "runs", for_runs, "another --out")]
    if to_fetch:
        wanted.append(("disk for the Hub's cache", HF_HUB_CACHE, to_fetch, "set HF_HOME"))
    checks = []
    for name, folder, needed, other in wanted:
        folder = Path(folder).absolute()
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free / GB
        figure = f"{free:.1f} GB free, {needed:.1f} needed"
        checks.append(Check(name, OK if free >= needed else MISSING, figure, f"make room, or {other}"))
    return checks


def check_rows(config: TrainConfig) -> Iterator[Check]:
    """By source, what the rows on this machine can teach with these flags; and the crops of a completion."""
    from engine.families import FAMILIES
    from machine import row_estimate
    from model import config_of

    for name, source in row_estimate.by_source(row_estimate.training_rows(config), config).items():
        figure = f"{source.rows:,}: rules can pay {source.payable:.3f}, the first look hides something in"
        figure += f" {source.hiding:.3f}, prompts that fit {source.fitting:.3f}"
        remedies = []
        if source.payable < ENOUGH_ROWS:
            remedies.append("--judge URL pays what rules can't")
        if source.hiding < ENOUGH_ROWS:
            remedies.append("a lower --look_pixels or --look_share")
        if source.fitting < ENOUGH_ROWS:
            remedies.append("a lower --batch: prompts are longer than planned")
        yield Check(f"rows, {name}", NOTE if remedies else OK, figure, "; ".join(remedies))
    if not row_estimate.takes_crops(config):
        return
    area = FAMILIES[config_of(config.model).model_type].token_area
    holds = row_estimate.crops_that_fit(config, area)
    figure, _, remedy = row_estimate.crops_text(config, area).partition(": ")
    verdict = NOTE if remedy else OK
    yield Check("crops", verdict if holds else MISSING, figure, remedy)


def check_judge(config: TrainConfig) -> Check:
    from grading.judge import Judge

    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(config.judge, Path(folder) / "judge.jsonl", tries=1, timeout=20)
        same = judge("What colour is the cup?", "red", "It is red.")
    if judge.down:
        remedy = "is the server up, and the URL the one that ends in /v1?"
        return Check("judge", MISSING, f"{config.judge} does not answer", remedy)
    if not same:
        return Check("judge", NOTE, "answers, but finds 'It is red.' no 'red'", "another model")
    return Check("judge", OK, f"{config.judge} answers")


def check_plan(config: TrainConfig) -> Check:
    """Does the run fit into the memory of the GPU at hand?"""
    import torch

    from machine import memory_estimate
    from model import config_of

    parts = memory_estimate.memory(config, config_of(config.model))
    most = memory_estimate.peak(parts) + memory_estimate.CONTEXT
    figure = f"{most:.1f} GB at most by the plan"
    if not torch.cuda.is_available():
        card = next((size for size in memory_estimate.CARDS if most < size), None)
        figure += f": a card of {card} GB" if card else ": more than the cards it knows"
        return Check("memory plan", NOTE if config.model != "tiny" else OK, figure)
    has = torch.cuda.get_device_properties(0).total_memory / GB
    figure += f", the card has {has:.1f}"
    return Check("memory plan", OK if most < has else MISSING, figure, memory_estimate.advice(config))


# --------------------------------------------------------------------------------------------------
# Exact, and how fast.


def tiny_run(steps: int, **settings) -> list[dict]:
    """Some steps of the real trainer on the tiny model; the rows of its metrics.jsonl."""
    from data import load
    from model import load_model
    from safe.files import read_rows
    from train import build_trainer

    threads = min(2, os.cpu_count() or 1)
    config = TrainConfig(steps=steps, eval_size=0, guard="off", threads=threads, show_every=100, **settings)
    model, processor = load_model("tiny")
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, model, processor, load("toy", limit=64), Path(folder))
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            trainer.train()
        return read_rows(Path(folder) / "metrics.jsonl")


def check_exactness(engine: str) -> Check:
    """An engine and its update on this device: the trainer's logprobs against the sampler's."""
    rows = tiny_run(2, prompts=2, micro_batch=8, engine=engine)
    gap = max(row["logp_gap"] for row in rows)
    moved = rows[-1]["grad_norm"] > 0 or rows[-1]["dead_groups"] == 1
    verdict = OK if gap < EXACT and moved else MISSING
    remedy = "this should be below 0.001: please report the versions above"
    return Check(f"exact, {engine}", verdict, f"sampler and trainer differ by {gap:.1g} at most", remedy)


def check_time(config: TrainConfig) -> Iterator[Check]:
    """What a run of this model takes; for the tiny one on a CPU checked against real steps."""
    from machine import time_estimate

    speed, device = time_estimate.speed_here(config.threads)
    figure = f"copies {speed.bytes_s / 1e9:.0f} GB/s, multiplies {speed.ops_s / 1e12:.2g} TFLOP/s"
    yield Check("speed", OK, figure)
    figure = time_estimate.time_text(config, speed, device)
    if device == "cuda":
        yield Check("time", NOTE, figure)
    elif config.model != "tiny":
        yield Check("time", MISSING, time_estimate.cards_text(config), "this model needs a GPU")
    else:
        yield Check("time", OK, figure)
        predicted = sum(time_estimate.step_seconds(config, speed, device).values())
        rows = tiny_run(5)
        measured = median(row["sec_rollout"] + row["sec_train"] for row in rows[1:])
        figure = f"{predicted:.2f} s a step predicted, {measured:.2f} measured"
        verdict = OK if abs(measured / predicted - 1) <= WITHIN else NOTE
        remedy = "is something else running? The prediction is as good as its few seconds"
        yield Check("time against a step", verdict, figure, remedy)


def all_checks(config: DoctorConfig, figures: dict) -> Iterator[Check]:
    """All lines, one after the other; those of --full put what they measured into `figures`."""
    yield check_python()
    packages = check_packages()
    yield from packages
    if any(check.figure == "not installed" for check in packages):
        return
    from model import prepare_libraries

    prepare_libraries(config.threads)
    yield check_device(config)
    yield check_memory(config)
    weights = check_weights(config)
    yield weights
    data = check_data(config)
    yield data
    if not model_source(config):
        return
    yield from check_disk(config, weights.to_fetch + data.to_fetch)
    if data.verdict == OK:
        yield from check_rows(config)
    if config.judge:
        yield check_judge(config)
    yield check_plan(config)
    for engine in ("generate", "slots"):
        yield check_exactness(engine)
    yield from check_time(config)
    if config.full:
        from machine.device_check import run_parts
        from train import build_trainer

        for name, outcome in run_parts(config, loading(config), build_trainer):
            figures[name] = outcome.figures
            yield Check(name, MISSING if outcome.remedy else OK, outcome.figure, outcome.remedy)


def loading(config: DoctorConfig) -> dict:
    """The arguments of `load_model` that are not in a TrainConfig."""
    return {"random_weights": config.random_weights, "layers": config.layers}


def main(config: DoctorConfig) -> None:
    began = time.time()
    checks = []
    figures = {}
    for check in all_checks(config, figures):
        print(check.text(), flush=True)
        checks.append(check)
    if figures:
        from machine.device_check import markdown

        print("\n" + markdown(config, loading(config), figures) + "\n")
    missing = [check for check in checks if check.verdict == MISSING]
    verdict = f"{len(missing)} missing" if missing else "this machine can do it"
    print(f"{verdict} ({time.time() - began:.0f} s)")
    if config.json:
        rows = [asdict(check) for check in checks]
        write_json(Path(config.json), {"checks": rows, "figures": figures})
        print(f"written: {config.json}")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    run_command(main, read_config)
