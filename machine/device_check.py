"""Every part of a training run, once, on the device at hand: what `doctor.py --full` does.

It is meant for a GPU, where this code has hardly been run; it runs on a CPU as well.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from config import TrainConfig, rollout_limits
from data import load
from engine.slots import SlotEngine
from evaluation.frame_check import frame_check
from evaluation.scores import answer_records, mean
from machine import memory_estimate
from model import config_of, load_model
from rollout import rollout
from runlog.tables import table
from safe.checkpoints import newest_whole
from safe.files import read_rows
from safe.memory import free_memory

GAP = 0.5  # most that logprobs of sampler and trainer may differ in bfloat16; in float32 0.001
BENCH = Path(__file__).parent.parent / "bench.py"


@dataclass
class Outcome:
    """How a part went."""

    figure: str  # in words
    remedy: str = ""  # where it went wrong
    figures: dict[str, float] = field(default_factory=dict)


def run_parts(config: TrainConfig, weights: dict, build_trainer) -> Iterator[tuple[str, Outcome]]:
    """Name and outcome of each part; one that fails stops no other.

    weights: of `load_model`: random_weights and layers. build_trainer: of train.py.
    """
    parts = {"decoding": partial(check_decoding, config, weights)}
    for quantize in dict.fromkeys(("", "4bit", config.quantize)):
        name = f"a step, {quantize or 'unquantised'}"
        parts[name] = partial(check_step, replace(config, quantize=quantize), weights, build_trainer)
    if not weights["random_weights"]:
        parts["frame of boxes"] = partial(check_frame, config, weights)
    parts["beside TRL's loop"] = partial(check_bench, config, weights)
    for name, check in parts.items():
        free_memory()
        try:
            yield name, check()
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0][:200]
            figure = f"{type(error).__name__}: {first_line}"
            yield name, Outcome(figure, "please report it, with the lines above")


def check_decoding(config: TrainConfig, weights: dict) -> Outcome:
    """The slots with and without a CUDA graph: tokens a second, and the same tokens, greedily."""
    model, processor = load_model(config.model, **weights)
    samples = load("toy", limit=8)
    settings = rollout_limits(config) | {"temperature": 0.0, "max_turns": 1, "threads": 1, "engine": "slots"}
    on_gpu = model.device.type == "cuda"
    rates = {}
    texts = {}
    for graphs in (False, True) if on_gpu else (False,):
        SlotEngine.use_graphs = graphs
        rates[graphs] = tokens_a_second(model, processor, samples, settings)
        answers = rollout(model, processor, samples, **settings)
        texts[graphs] = [trajectory.completion_ids for trajectory in answers]
    SlotEngine.use_graphs = True
    figures = {f"tokens/s, graph {graphs}": rate for graphs, rate in rates.items()}
    if not on_gpu:
        return Outcome(f"{rates[False]:.0f} tokens/s; no GPU, so no graph", figures=figures)
    same = mean(float(one == other) for one, other in zip(texts[False], texts[True], strict=True))
    figures["same greedy texts"] = same
    figure = f"{rates[False]:.0f} tokens/s, with a CUDA graph {rates[True]:.0f}; {same:.0%} the same"
    remedy = "" if same >= 0.5 else "the graph computes something else"
    return Outcome(figure, remedy, figures)


def check_frame(config: TrainConfig, weights: dict) -> Outcome:
    """Do the model's boxes lie on what it was asked for?"""
    model, processor = load_model(config.model, **weights)
    check = frame_check(model, processor, config)
    remedy = "" if check.is_good() else "crops would show something else: is it one of the two families?"
    return Outcome(check.text(), remedy, check._asdict())


def tokens_a_second(model, processor, samples, settings: dict) -> float:
    """Of a rollout in groups of eight, after one that warms up."""
    rollout(model, processor, samples, group=8, **settings)
    began = now(model.device)
    trajectories = rollout(model, processor, samples, group=8, **settings)
    return sum(sum(t.sampled) for t in trajectories) / (now(model.device) - began)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def check_step(config: TrainConfig, weights: dict, build_trainer) -> Outcome:
    """A whole step of train.py with this config, a checkpoint, the next step resumed from it, four questions
    scored; the peak of memory against the estimate."""
    figures = {}
    dtypes = set()
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        for steps in (1, 2):
            model, processor = load_model(config.model, quantize=config.quantize, **weights)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            samples = load("toy", limit=max(64, config.prompts))
            quiet = {"eval_size": 0, "save_every": 1, "guard": "off", "show_every": 1000}
            trainer = build_trainer(replace(config, steps=steps, **quiet), model, processor, samples, run)
            checkpoint = newest_whole(run)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            dtypes |= {str(weight.dtype) for weight in trainer.model.parameters() if weight.requires_grad}
            if on_gpu:
                figures["peak GB"] = torch.cuda.max_memory_allocated() / memory_estimate.GB
            model = trainer.accelerator.unwrap_model(trainer.model)
            if steps == 2:
                records = answer_records(model, processor, samples[:4], "on", **rollout_limits(config))
                figures["scored"] = len(records)
            del trainer, model
            free_memory()
        rows = read_rows(run / "metrics.jsonl")
    for key in ("sec_rollout", "sec_train", "tokens", "grad_norm"):
        figures[key] = rows[-1][key]
    figures["logp_gap"] = max(row["logp_gap"] for row in rows)
    figures["planned GB"] = memory_estimate.peak(memory_estimate.memory(config, config_of(config.model)))
    return judge_step(figures, dtypes, [row["step"] for row in rows], exact=not on_gpu)


def judge_step(figures: dict[str, float], dtypes: set[str], steps: list[int], exact: bool) -> Outcome:
    """Is what `check_step` measured as it should be? dtypes: of the weights that train. exact: in float32."""
    remedies = []
    if figures["logp_gap"] > (1e-3 if exact else GAP):
        remedies.append("sampler and trainer drift apart")
    if dtypes != {"torch.float32"}:
        remedies.append(f"adapters train in {', '.join(dtypes)}")
    if steps != [1, 2]:
        remedies.append("the resume lost a step")
    peak = figures.get("peak GB", 0.0)
    if peak > figures["planned GB"]:
        remedies.append("the memory estimate is too small")
    figure = f"rollout {figures['sec_rollout']:.1f} s, update {figures['sec_train']:.1f} s"
    figure += f", logprobs differ by {figures['logp_gap']:.2g}"
    if peak:
        figure += f", {peak:.1f} GB at most, planned {figures['planned GB']:.1f}"
    return Outcome(figure, "; ".join(remedies), figures)


def check_bench(config: TrainConfig, weights: dict) -> Outcome:
    """bench.py on one question: TRL's own loop and ours."""
    command = [sys.executable, str(BENCH), "--model", config.model, "--threads", str(config.threads)]
    command += ["--prompts", "1", "--repeats", "1"]
    if weights["random_weights"]:
        command += ["--random_weights", "--layers", str(weights["layers"])]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True)
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["?"])[-1]
            return Outcome(last_line[:200], "bench.py ends with an error")
        result = json.loads(out.read_text())
    figures = {"rollout": result["rollout_vs_trl"]["slots"], "update": result["update_vs_trl"]}
    speeds = [f"{name}s {times:.1f}" for name, times in figures.items()]
    return Outcome(f"{', '.join(speeds)} times as fast as TRL's", figures=figures)


def markdown(config: TrainConfig, weights: dict, figures: dict[str, dict]) -> str:
    """What was measured, as a table for docs/speed.md. figures: of each part."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    random = ", random weights" if weights["random_weights"] else ""
    rows = [["part", "what", ""]]
    for part, measured in figures.items():
        for what, value in measured.items():
            rows.append([part, what, f"{value:.3g}" if isinstance(value, float) else str(value)])
    return f"## {device}: {config.model}{random}\n\n{table(rows, markdown=True)}"
