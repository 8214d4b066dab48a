"""A trainer that loses nothing: updates that are no numbers are left out, checkpoints are whole, a request to
stop is heard after a step."""

import math
import shutil
from pathlib import Path
from statistics import median

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from runs import picture_bytes, read_rows
from safe.checkpoints import (
    ASIDE,
    SaveFailed,
    all_checkpoints,
    check_space,
    newest_whole,
    put_in_place,
    step_of,
)
from safe.memory import SparingTrainer
from safe.signals import REQUEST

MOST_BAD = 3  # steps in a row without numbers
USUAL = 200  # steps over which the usual gradient is taken


class NotFinite(RuntimeError):
    """The run has lost its numbers."""


class LeaveOutBadUpdates(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **more):
        self.trainer.leave_out_bad_update()


class SafeTrainer(SparingTrainer):
    """It needs `run`, the run folder, and `knobs`, of train.py, set before it is used."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.bad_steps = 0  # in a row
        self.norms = []  # of the gradients so far
        self.add_callback(LeaveOutBadUpdates(self))

    def leave_out_bad_update(self) -> None:
        """Where a gradient or a weight is no number, the optimiser finds no gradient, and moves nothing."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        numbers = [weight.detach() for weight in trained]
        numbers += [weight.grad for weight in trained if weight.grad is not None]
        largest = torch.stack([value.abs().max().float() for value in numbers]).max()
        if math.isfinite(largest.item()):
            self.bad_steps = 0
            return
        self.bad_steps += 1
        for weight in trained:
            weight.grad = None

    def number_stats(self, grad_norm: float) -> dict[str, float]:
        """Of a step: was its update left out, and how many times the usual gradient was it?"""
        stats = {"left_out": float(self.bad_steps > 0), "grad_jump": None}
        if math.isfinite(grad_norm):
            usual = median(self.norms[-USUAL:] or [grad_norm])
            stats["grad_jump"] = grad_norm / usual if usual else None
            self.norms.append(grad_norm)
        return stats

    def check_numbers(self) -> None:
        """Raise NotFinite where it can't go on."""
        if self.bad_steps < MOST_BAD:
            return
        first = self.state.global_step - MOST_BAD + 1
        where = "there is no good checkpoint"
        for folder in all_checkpoints(self.run):  # newest first
            if step_of(folder) < first - 1:  # a step after it was finite
                where = f"{folder.name} is the last good one"
                break
        raise NotFinite(
            f"loss, gradients or weights were no numbers in {MOST_BAD} steps in a row, from step {first}"
            f" on; {where}; start again with a lower --lr than {self.args.learning_rate:g}"
        )

    def _save_checkpoint(self, model, trial) -> None:
        """As the library's, but written aside first; none of a state whose step was left out."""
        if self.bad_steps:
            return
        aside = self.run / ASIDE
        keep = self.args.save_total_limit
        if self.accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(aside)
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                written = aside / f"checkpoint-{self.state.global_step}"
                put_in_place(written, self.run, keep)
        except SaveFailed:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:  # each library's word for it
            raise SaveFailed(f"a checkpoint can't be written in {self.run}: {error}") from error
        finally:
            self.args.output_dir = str(self.run)
            self.args.save_total_limit = keep
            if self.accelerator.is_main_process:
                shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def train_patiently(self, checkpoint: Path | None) -> None:
        """`train`, which finishes a step when asked to stop: see `REQUEST.number`."""
        trained = sum(w.numel() for w in self.model.parameters() if w.requires_grad)
        done = step_of(checkpoint) if checkpoint else 0
        check_space(self.run, trained, picture_bytes(self.knobs, done))
        REQUEST.patient = True
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            REQUEST.patient = False


def where_to_go_on(run: Path, save_every: int) -> tuple[Path | None, list[dict]]:
    """The checkpoint that a resume starts from, and the run's history so far. Raises ValueError where there
    must have been a checkpoint."""
    rows = read_rows(run / "metrics.jsonl")
    found = newest_whole(run, say=lambda text: print(text, flush=True))
    last = rows[-1]["step"] if rows else 0
    if found is None and last >= save_every:
        raise ValueError(
            f"{run} has done {last} steps, but holds no whole checkpoint to go on from; "
            f"give another --out, or put a checkpoint back"
        )
    return found, rows
