"""Out of memory is no end: a rollout is tried again with half the slots, an update in two halves.

Once each in a run, and so for the rest of it. One process alone can do that: with several, the others would
wait for ever.
"""

import gc

import torch
from trl import GRPOTrainer


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error on a GPU; on a CPU it is a RuntimeError that says so.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), is_out_of_memory(RuntimeError("no"))
    (True, False)
    """
    words = "can't allocate memory"
    return isinstance(error, torch.OutOfMemoryError) or words in str(error)


def free_memory() -> None:
    """Give back what the failed attempt held; to be called where its frames are gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
