"""Can this machine do what I want? Told in a minute, before anything is waited for.

    python doctor.py                          # packages, device, memory, disk, exactness; the tiny model
    python doctor.py --model qwen2.5-vl-3b    # and what a 3B needs: memory, hours, gigabytes to fetch
    python doctor.py --model qwen2.5-vl-3b --full --random_weights       # on a GPU: every part, run once

Each line is a check: "ok", "note" (it will do, but), or "MISSING" (what was asked for can't be done), with a
figure and the remedy. Exit code 0; 1 if something is missing; 2 for a mistake in the call.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
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
WITHIN = 0.3  # of what was predicted, a measured step is as predicted


@dataclass
class Check:
    name: str
    verdict: str
    figure: str
    remedy: str = ""

    def text(self) -> str:
        remedy = f"  ->  {self.remedy}" if self.remedy else ""
        return f"{self.verdict:<8}{self.name:<26}{self.figure}{remedy}"


@dataclass(frozen=True)
class DoctorConfig(TrainConfig):
    """The flags of this script: its own, and those of the run that it is asked about."""

    MOST_USED: ClassVar = ("model", "data", "full", "random_weights", "layers", "json")

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
# Anywhere.


def check_python() -> Check:
    version = platform.python_version()
    if sys.version_info >= LEAST_PYTHON:
        return Check("Python", OK, version)
    wanted = ".".join(map(str, LEAST_PYTHON))
    return Check("Python", MISSING, version, f"needs {wanted} or newer")


def check_packages() -> list[Check]:
    """What is installed against the pins of requirements.txt."""
    text = (Path(__file__).parent / "requirements.txt").read_text()
    found = []
    wrong = []
    for name, pinned in re.findall(r"^([\w-]+)==([\w.]+)", text, re.M):
        try:
            version = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        found.append(name)
        if version != pinned:
            remedy = f"pip install {name}=={pinned}"
            wrong.append(Check(f"package {name}", MISSING, version, remedy))
    if wrong:
        return wrong
    return [Check("packages", OK, f"all {len(found)} as in requirements.txt")]


def check_device() -> Check:
    import torch

    if not torch.cuda.is_available():
        cores = os.cpu_count()
        return Check("device", OK, f"no GPU; {cores} CPU cores: enough for the tiny model")
    properties = torch.cuda.get_device_properties(0)
    memory = properties.total_memory / GB
    figure = f"{properties.name}, {memory:.1f} GB, capability {properties.major}.{properties.minor}"
    if properties.major < 8:
        return Check("device", MISSING, figure, "bfloat16 needs capability 8.0 or newer")
    if torch.backends.cuda.cudnn_sdp_enabled():
        return Check("device", NOTE, figure, "cuDNN's attention is on: model.py switches it off")
    return Check("device", OK, figure)


def check_memory(config) -> Check:
    """Of the machine; a GPU's is the plan's business."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    wanted = 4 if config.model == "tiny" else 16
    figure = f"{total:.0f} GB"
    if total < wanted:
        return Check("memory", NOTE, figure, f"{wanted} GB and more are wanted")
    return Check("memory", OK, figure)


def weights_gb(config) -> float:
    """What the weights take on disk, in bfloat16."""
    from machine.memory_estimate import sizes
    from model import config_of

    count = sizes(config_of(config.model))
    return 2 * (count["matrices"] + count["embeddings"] + count["vision"]) / GB


def checkpoints_gb(config) -> float:
    """The two checkpoints that are kept, and the one that is being written: adapter and optimiser."""
    from machine.memory_estimate import sizes
    from model import config_of

    lora = sizes(config_of(config.model))["lora"] * config.lora
    return 3 * lora * 12 / GB


def hub_answers(repository: str, kind: str) -> str:
    """ "" if the Hub answers for this repository, else what went wrong."""
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=10)
    except Exception as error:
        return type(error).__name__
    return ""


def check_hub(name: str, place: str, kind: str, file: str, size: float) -> tuple[Check, float]:
    """Is a repository in the Hub's cache (this file stands for all), or can it be fetched? And the gigabytes
    to fetch. kind: "model" or "dataset"; size: GB, 0 where it is not known."""
    from data import is_cached

    if is_cached(place, kind, file):
        return Check(name, OK, f"in the Hub's cache: {place}"), 0.0
    amount = f"{size:.1f} GB to fetch" if size else "to fetch"
    if trouble := hub_answers(place, kind):
        figure = f"{amount}, but the Hub does not answer ({trouble})"
        option = "" if kind == "model" else f"--repo-type {kind} "
        remedy = f"where there is a connection: hf download {option}{place}"
        return Check(name, MISSING, figure, remedy), size
    return Check(name, NOTE, f"{amount} on the first run: {place}"), size


def place_of(config) -> str:
    """The folder or Hub name of the model; "" for what is neither."""
    place = PRESETS[config.model].source if config.model in PRESETS else config.model
    is_folder = Path(place).expanduser().is_dir()
    return place if is_folder or place.count("/") == 1 else ""


def check_weights(config) -> tuple[Check, float]:
    """Are the weights here? And the gigabytes to fetch."""
    place = place_of(config)
    if not place:
        remedy = f"a preset ({', '.join(PRESETS)}), a folder, or OWNER/MODEL"
        return Check("weights", MISSING, f"no such model: {config.model}", remedy), 0.0
    if config.random_weights:
        return Check("weights", OK, "random ones, nothing to fetch"), 0.0
    if Path(place).expanduser().is_dir():
        return Check("weights", OK, f"on disk: {place}"), 0.0
    size = weights_gb(config) if config.model in PRESETS else 0.0
    return check_hub("weights", place, "model", "config.json", size)


def check_data(config) -> tuple[Check, float]:
    """Is the data set here? And the gigabytes to fetch."""
    from data import DEEPEYES, DEEPEYES_GB

    name = config.data
    if name.startswith("toy"):
        return Check("data", OK, f"{name} is drawn, nothing to fetch"), 0.0
    if config.root or Path(name).is_dir():
        place = config.root or name
        if Path(place).is_dir():
            return Check("data", OK, f"on disk: {place}"), 0.0
        return Check("data", MISSING, f"no such folder: {place}", "--root FOLDER"), 0.0
    if name == "seal":
        remedy = "--root FOLDER with the four .json files and the COCO and GQA images"
        return Check("data", MISSING, "seal is read from a folder", remedy), 0.0
    if name != "deepeyes":
        remedy = f"one of {', '.join(DATASETS)}, or a folder"
        return Check("data", MISSING, f"no such data set: {name}", remedy), 0.0
    return check_hub("data", DEEPEYES, "dataset", "README.md", DEEPEYES_GB)


def check_disk(config, to_fetch: float) -> list[Check]:
    """The Hub's cache, and the folder where runs go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    checks = []
    runs = Path(config.out or "runs")
    wanted = [("disk for runs", runs, checkpoints_gb(config) + 0.2, "another --out")]
    if to_fetch:
        cache = Path(HF_HUB_CACHE)
        wanted.append(("disk for the Hub's cache", cache, to_fetch, "set HF_HOME"))
    for name, place, needed, other in wanted:
        folder = place.absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free / GB
        figure = f"{free:.1f} GB free, {needed:.1f} needed"
        if free < needed:
            checks.append(Check(name, MISSING, figure, f"make room, or {other}"))
        else:
            checks.append(Check(name, OK, figure))
    return checks


def check_judge(config) -> list[Check]:
    if not config.judge:
        return []
    from grading.judge import Judge

    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(config.judge, Path(folder) / "judge.jsonl", tries=1, timeout=20)
        same = judge("What colour is the cup?", "red", "It is red.")
    if judge.down:
        remedy = "is the server up, and the URL the one that ends in /v1?"
        return [Check("judge", MISSING, f"{config.judge} does not answer", remedy)]
    if not same:
        return [Check("judge", NOTE, "answers, but finds 'It is red.' no 'red'", "another model")]
    return [Check("judge", OK, f"{config.judge} answers")]


# --------------------------------------------------------------------------------------------------
# Exact, and how fast.


def tiny_run(folder: Path, steps: int, **more):
    """The real trainer on the tiny model, some steps; its rows of metrics.jsonl."""
    import train
    from data import load
    from model import load_model
    from safe.files import read_rows

    threads = min(2, os.cpu_count() or 1)
    settings = {"steps": steps, "eval_size": 0, "guard": "off", "threads": threads}
    config = TrainConfig(**settings | more)
    model, processor = load_model("tiny")
    trainer = train.build_trainer(config, model, processor, load("toy", limit=64), folder)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        trainer.train()
    return read_rows(folder / "metrics.jsonl")


def check_exactness() -> list[Check]:
    """Both engines and the update on this device: the trainer's logprobs against the sampler's."""
    checks = []
    for engine in ("generate", "slots"):
        with tempfile.TemporaryDirectory() as folder:
            small = {"prompts": 2, "micro_batch": 8, "show_every": 100, "engine": engine}
            rows = tiny_run(Path(folder), 2, **small)
        gap = max(row["logp_gap"] for row in rows)
        moved = rows[-1]["grad_norm"] > 0 or rows[-1]["dead_groups"] == 1
        figure = f"sampler and trainer differ by {gap:.1g} at most"
        if gap < 1e-3 and moved:
            checks.append(Check(f"exact, {engine}", OK, figure))
        else:
            remedy = "this should be below 0.001: please report the versions above"
            checks.append(Check(f"exact, {engine}", MISSING, figure, remedy))
    return checks


def check_pace(config) -> list[Check]:
    """What a run of this model takes; for the tiny one on a CPU checked against real steps."""
    import torch

    from machine import time_estimate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_num_threads(config.threads)
    speed = time_estimate.device_speed(device, dtype)
    figure = f"copies {speed.bytes_s / 1e9:.0f} GB/s, multiplies {speed.ops_s / 1e12:.2g} TFLOP/s"
    checks = [Check("speed", OK, figure)]
    figure = time_estimate.time_text(config, speed, device.type)
    if device.type == "cpu" and config.model != "tiny":
        checks.append(Check("time", MISSING, figure, "this model needs a GPU"))
        return checks
    checks.append(Check("time", OK if device.type == "cpu" else NOTE, figure))
    if config.model == "tiny" and device.type == "cpu":
        predicted = sum(time_estimate.step_seconds(config, speed, "cpu").values())
        with tempfile.TemporaryDirectory() as folder:
            rows = tiny_run(Path(folder), 5, show_every=100)
        steps = [row["sec_rollout"] + row["sec_train"] for row in rows[1:]]
        measured = sorted(steps)[len(steps) // 2]
        figure = f"{predicted:.2f} s a step predicted, {measured:.2f} measured"
        if abs(measured / predicted - 1) <= WITHIN:
            checks.append(Check("time against a step", OK, figure))
        else:
            remedy = "is something else running? The prediction is as good as its few seconds"
            checks.append(Check("time against a step", NOTE, figure, remedy))
    return checks


def check_plan(config) -> Check:
    """Does the run fit into the memory of the GPU at hand?"""
    import torch

    from machine import memory_estimate
    from model import config_of

    parts = memory_estimate.memory(config, config_of(config.model), 1)
    most = memory_estimate.peak(parts) + memory_estimate.CONTEXT
    figure = f"{most:.1f} GB at most by the plan"
    if not torch.cuda.is_available():
        return Check("memory plan", NOTE if config.model != "tiny" else OK, figure)
    has = torch.cuda.get_device_properties(0).total_memory / GB
    if most < has:
        return Check("memory plan", OK, f"{figure}, the card has {has:.1f}")
    return Check("memory plan", MISSING, f"{figure}, the card has {has:.1f}", memory_estimate.advice(config))


def everywhere(config):
    """The checks that take no more than a minute, one after the other."""
    yield check_python()
    packages = check_packages()
    yield from packages
    if any("not installed" in check.figure for check in packages):
        return
    yield check_device()
    yield check_memory(config)
    weights, weights_size = check_weights(config)
    yield weights
    data, data_size = check_data(config)
    yield data
    if not place_of(config):
        return
    yield from check_disk(config, weights_size + data_size)
    yield from check_judge(config)
    yield check_plan(config)
    yield from check_exactness()
    yield from check_pace(config)


def main(config: DoctorConfig) -> None:
    from model import prepare_libraries

    prepare_libraries(config.threads)
    began = time.time()
    checks = []
    found = everywhere(config)
    for check in found:
        print(check.text(), flush=True)
        checks.append(check)
    figures = {}
    if config.full:
        from machine.device_check import markdown, trials
        from train import build_trainer

        for name, good, figure, remedy, more in trials(config, build_trainer):
            check = Check(name, OK if good else MISSING, figure, remedy)
            print(check.text(), flush=True)
            checks.append(check)
            figures |= more
        print("\n" + markdown(config, figures) + "\n")
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
