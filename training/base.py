"""A trainer that loses nothing: updates that are no numbers are left out, checkpoints are whole, a request to
stop is heard after a step."""

import math
import shutil
from pathlib import Path
from statistics import median

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback
from trl import GRPOTrainer

from runlog.runs import picture_bytes
from safe.checkpoints import (
    ASIDE,
    SaveFailed,
    all_checkpoints,
    check_space,
    newest_whole,
    put_in_place,
    step_of,
)
from safe.files import read_rows
from safe.memory import free_memory, is_out_of_memory
from safe.signals import REQUEST

MOST_BAD = 3  # steps in a row without numbers
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
        room = max(0, half - sum(map(len, first)))
        first.append(group[:room])
        second.append(group[room:])
    return [[group for group in part if group] for part in (first, second)]


def copied(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()


class SparingTrainer(GRPOTrainer):
    """A trainer whose knobs shrink when memory runs out. It needs `knobs`, of train.py."""

    in_halves = False  # updates
    fewer_slots = False

    def roll(self, rollout, *arguments, **settings) -> list:
        """Call `rollout` with these; where memory runs out, once more with half the slots."""
        knobs = self.knobs
        settings["batch"] = knobs.batch
        try:
            return rollout(*arguments, **settings)
        except RuntimeError as error:
            if not self.may_shrink(error) or self.fewer_slots or knobs.batch <= knobs.group:
                raise
        free_memory()
        used = min(knobs.batch, knobs.prompts * knobs.group)
        knobs.batch = max(knobs.group, used // 2)
        self.fewer_slots = True
        print(f"out of memory in a rollout: from here on --batch {knobs.batch}", flush=True)
        settings["batch"] = knobs.batch
        return rollout(*arguments, **settings)

    def may_shrink(self, error: BaseException) -> bool:
        return is_out_of_memory(error) and self.accelerator.num_processes == 1

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward over a micro-batch; where memory runs out, once more in two halves."""
        model.train()
        groups = self._prepare_inputs(inputs)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        before = [copied(weight.grad) for weight in trained]
        try:
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
            loss = self.backward_over(model, groups)
        self._step += 1  # as TRL counts
        return loss

    def backward_over(self, model, groups) -> torch.Tensor:
        """Add the gradients of a micro-batch's loss, which is returned: whole, or a half at a time."""
        parts = halves(groups) if self.in_halves else [groups]
        whole = self.weight(groups)
        total = 0.0
        for part in filter(None, parts):
            loss = self.compute_loss(model, part)
            loss = loss * (self.weight(part) / whole)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def weight(self, groups) -> float:
        """What a part of a micro-batch counts in its average: see `ZoomGRPOTrainer.average`."""
        members = [trajectory for group in groups for trajectory in group]
        if self.loss_type == "dapo":  # over the tokens of the whole step: parts add up
            return 1.0
        if self.loss_type == "bnpo":
            return sum(sum(trajectory.sampled) for trajectory in members)
        return len(members)


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
