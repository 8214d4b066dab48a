"""A trainer that loses nothing: memory that runs out is no end, NaN updates are left out, checkpoints are
whole, a request to stop is heard after a step."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback
from trl import GRPOTrainer

from config import TrainConfig
from safe.checkpoints import (
    ASIDE,
    SaveFailed,
    all_checkpoints,
    check_space,
    put_in_place,
    step_of,
)
from safe.memory import free_memory, in_memory, is_out_of_memory, phase
from safe.signals import REQUEST

MOST_BAD = 3  # steps in a row without finite numbers
USUAL = 200  # steps over which the usual gradient is taken


def halves(groups: list[list]) -> list[list[list]]:
    """Two halves of a micro-batch; members of a group stay together where they can.

    >>> halves([["a1", "a2"], ["b1", "b2"]]), halves([["a1", "a2"]])
    ([[['a1', 'a2']], [['b1', 'b2']]], [[['a1']], [['a2']]])
    """
    half = sum(map(len, groups)) // 2
    first = []
    second = []
    for group in groups:
        left = max(0, half - sum(map(len, first)))
        first.append(group[:left])
        second.append(group[left:])
    return [[group for group in part if group] for part in (first, second)]


def copied(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()


class NotFinite(RuntimeError):
    """The run has lost its numbers."""


class LeaveOutBadUpdates(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **more):
        self.trainer.leave_out_bad_update()


class PatientTrainer(GRPOTrainer):
    """TRL's trainer, made to last a night.

    When memory runs out, rollouts get half their batch, updates half their micro-batch: once each, and so for
    the rest of the run. (One process alone can do that: of several, the others would wait for ever.) run: the
    folder. rows: of metrics.jsonl, of the steps that the run has done before.
    """

    def __init__(self, *, config: TrainConfig, run: Path, rows: list[dict] = (), **settings):
        super().__init__(**settings)
        self.config = config
        self.run = run
        self.rows = list(rows)
        self.norms = [row["grad_norm"] for row in rows if row["grad_norm"]]  # of the gradients so far
        self.bad_steps = 0  # in a row
        self.rollout_batch = config.batch
        self.in_halves = False  # updates
        self.add_callback(LeaveOutBadUpdates(self))

    # ---- memory

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward over a micro-batch, in place of TRL's; where memory runs out, once more in two
        halves."""
        model.train()
        with phase("rollout"):
            groups = self._prepare_inputs(inputs)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        before = [copied(weight.grad) for weight in trained]
        try:
            with phase("update"):
                loss = self.backward_over(model, groups)
        except RuntimeError as error:
            if not self.may_shrink(error) or self.in_halves:
                raise
            loss = None
        if loss is None:
            for weight, gradient in zip(trained, before):
                weight.grad = gradient
            free_memory()
            self.in_halves = True
            half = -(-self.args.per_device_train_batch_size // 2)
            print(f"out of memory in an update: from here on --micro_batch {half}", flush=True)
            with phase("update"):
                loss = self.backward_over(model, groups)
        self._step += 1  # as TRL counts
        return loss

    def backward_over(self, model, groups) -> torch.Tensor:
        """Add the gradients of a micro-batch's loss, which is returned: whole, or a half at a time."""
        whole = [trajectory for group in groups for trajectory in group]
        parts = halves(groups) if self.in_halves else [groups]
        total = 0.0
        for part in filter(None, parts):
            loss = self.compute_loss(model, part, whole=whole)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def sample_in_memory(self, sample: Callable) -> list:
        """`sample(batch)`, the trajectories of a rollout of so many at once; where memory runs out, once more
        with half of them, and so for the rest of the run. One group alone is not tried again."""
        config = self.config
        used = min(config.batch, config.prompts * config.group)

        def work(batch: int) -> list:
            if batch < used:
                print(f"from here on rollouts have --batch {batch}", flush=True)
                self.rollout_batch = batch
            return sample(self.rollout_batch)

        if self.accelerator.num_processes > 1 or self.rollout_batch < config.batch:
            return sample(self.rollout_batch)
        return in_memory(work, used, least=config.group)

    def may_shrink(self, error: BaseException) -> bool:
        return is_out_of_memory(error) and self.accelerator.num_processes == 1

    # ---- numbers

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

    # ---- checkpoints

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
        check_space(self.run, sum(w.numel() for w in self.model.parameters() if w.requires_grad))
        REQUEST.patient = True
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            REQUEST.patient = False
