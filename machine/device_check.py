"""Every part of a training run, once, on the device at hand: what `doctor.py --full` does.

Meant for a GPU, on which this code has hardly been; it runs on a CPU, too.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from config import rollout_limits
from data import load
from engine.slots import SlotEngine
from evaluation.scores import answer_records, mean
from machine import memory_estimate
from model import load_model
from rollout import rollout
from safe.checkpoints import newest_whole
from safe.files import read_rows
from safe.memory import free_memory

GB = 2**30
GAP = 0.5  # between logprobs of sampler and trainer in bfloat16; in float32 0.001


def trials(config, build_trainer):
    """(name, whether it went well, figure, remedy, figures) of each part; one that fails stops no other."""
    parts = [("decoding", try_decoding)]
    for quantize in dict.fromkeys(("", "4bit", config.quantize)):
        name = f"a step, {quantize or 'unquantised'}"
        own = replace(config, quantize=quantize)
        parts.append((name, lambda _, own=own: try_step(own, build_trainer)))
    parts.append(("beside TRL's loop", try_bench))
    for name, part in parts:
        free_memory()
        try:
            good, figure, remedy, figures = part(config)
        except Exception as error:
            text = str(error).splitlines() or [""]
            figure = f"{type(error).__name__}: {text[0][:200]}"
            yield name, False, figure, "please report it, with the lines above", {}
            continue
        yield name, good, figure, remedy, {name: figures}


def load_for(config):
    weights = {"random_weights": config.random_weights, "layers": config.layers}
    quantize = config.quantize or None
    return load_model(config.model, quantize=quantize, **weights)


def try_decoding(config):
    """The slots with and without a CUDA graph: as fast as can be, and the same tokens, greedily."""
    model, processor = load_for(replace(config, quantize=""))
    samples = load("toy", limit=8)
    settings = rollout_limits(config) | {"temperature": 0.0, "max_turns": 1, "threads": 1}
    rates = {}
    texts = {}
    on_gpu = model.device.type == "cuda"
    for graphs in (False, True) if on_gpu else (False,):
        SlotEngine.use_graphs = graphs
        rates[graphs] = tokens_a_second(model, processor, samples, settings)
        answers = rollout(model, processor, samples, **settings | {"engine": "slots"})
        texts[graphs] = [trajectory.completion_ids for trajectory in answers]
    SlotEngine.use_graphs = True
    figures = {f"tokens/s, graph {graphs}": rate for graphs, rate in rates.items()}
    if not on_gpu:
        return True, f"{rates[False]:.0f} tokens/s; no GPU, so no graph", "", figures
    pairs = list(zip(texts[False], texts[True], strict=True))
    same = mean(float(one == other) for one, other in pairs)
    figures["same greedy texts"] = same
    figure = f"{rates[False]:.0f} tokens/s, with a CUDA graph {rates[True]:.0f}; {same:.0%} the same"
    return (
        same >= 0.5,
        figure,
        "" if same >= 0.5 else "the graph computes something else",
        figures,
    )


def tokens_a_second(model, processor, samples, settings) -> float:
    """Of a rollout in groups of eight, after one that warms up."""
    rate = 0.0
    for _ in range(2):
        seconds = Seconds(model.device)
        found = rollout(model, processor, samples, group=8, **settings | {"engine": "slots"})
        rate = sum(sum(t.sampled) for t in found) / seconds.passed()
    return rate


class Seconds:
    """A clock that waits for the device."""

    def __init__(self, device):
        self.device = device
        self.began = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def passed(self) -> float:
        return self.now() - self.began


def try_step(config, build_trainer):
    """A whole step of train.py at these config, a checkpoint, the next step resumed from it, four questions
    scored; the peak of memory against the plan's."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        checkpoint = None
        for steps in (1, 2):
            own = replace(config, steps=steps, eval_size=0, save_every=1, guard="off")
            own = replace(own, show_every=1000)
            model, processor = load_for(config)
            on_gpu = model.device.type == "cuda"
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            samples = load("toy", limit=max(64, own.prompts))
            trainer = build_trainer(own, model, processor, samples, run)
            trainer.train(resume_from_checkpoint=checkpoint)
            checkpoint = str(newest_whole(run))
            kinds = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
            if on_gpu:
                figures["peak GB"] = torch.cuda.max_memory_allocated() / GB
            model = trainer.accelerator.unwrap_model(trainer.model)
            if steps == 2:
                limits = rollout_limits(config)
                records = answer_records(model, processor, samples[:4], "on", **limits)
                figures["scored"] = len(records)
            del trainer, model
            free_memory()
        rows = read_rows(run / "metrics.jsonl")
    for key in ("sec_rollout", "sec_train", "tokens", "grad_norm"):
        figures[key] = rows[-1][key]
    figures["logp_gap"] = max(row["logp_gap"] for row in rows)
    figures["planned GB"] = memory_estimate.peak(
        memory_estimate.memory(config, memory_estimate.config_of(config.model))
    )
    return judged_step(figures, kinds, [row["step"] for row in rows], exact=not on_gpu)


def judged_step(figures: dict, kinds: set[str], steps: list[int], exact: bool):
    """Is what `try_step` saw as it should be?"""
    remedies = []
    if figures["logp_gap"] > (1e-3 if exact else GAP):
        remedies.append("sampler and trainer drift apart")
    if kinds != {"torch.float32"}:
        remedies.append(f"adapters train in {', '.join(kinds)}")
    if steps != [1, 2]:
        remedies.append("the resume lost a step")
    peak = figures.get("peak GB", 0.0)
    if peak > figures["planned GB"]:
        remedies.append("the plan is too small")
    figure = f"rollout {figures['sec_rollout']:.1f} s, update {figures['sec_train']:.1f} s"
    figure += f", logprobs differ by {figures['logp_gap']:.2g}"
    if peak:
        figure += f", {peak:.1f} GB at most, planned {figures['planned GB']:.1f}"
    return not remedies, figure, "; ".join(remedies), figures


def try_bench(config):
    """bench.py on one question: TRL's own loop and ours."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        script = Path(__file__).parent.parent / "bench.py"
        command = [sys.executable, str(script), "--model", config.model, "--prompts", "1"]
        command += ["--repeats", "1", "--threads", str(config.threads), "--json", str(out)]
        if config.random_weights:
            command += ["--random_weights", "--layers", str(config.layers)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["?"])[-1]
            return False, last[:200], "bench.py ends with an error", {}
        found = json.loads(out.read_text())
    rollouts = found["rollout_vs_trl"]["slots"]
    updates = found["update_vs_trl"]
    figure = f"rollouts {rollouts:.1f}, updates {updates:.1f} times as fast as TRL's"
    return True, figure, "", {"rollout": rollouts, "update": updates}


def markdown(config, figures: dict[str, dict]) -> str:
    """What was measured, as a table for docs/speed.md."""
    name = "CPU"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    weights = ", random weights" if config.random_weights else ""
    lines = [f"## {name}: {config.model}{weights}", "", "| part | what | |", "|---|---|---:|"]
    for part, found in figures.items():
        for what, value in found.items():
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            lines.append(f"| {part} | {what} | {text} |")
    return "\n".join(lines)
