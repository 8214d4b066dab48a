"""Teach a Qwen2.5-VL to think with images: GRPO from outcome reward alone, no SFT cold start (DeepEyes,
arXiv 2505.14362).

    python train.py                                   # the embedded tiny model on a laptop CPU, in minutes
    python train.py --out runs/mine --resume          # go on after a kill, with the knobs of the run
    python train.py --model qwen2.5-vl-3b --plan      # will it fit? Then the same without --plan
    torchrun --standalone --nproc-per-node 2 train.py ...          # two GPUs

One step is: sample a group of trajectories for each question, score them, compare each with its group, and
raise the probability of what did better. TRL lends the optimiser, its schedule, gradient accumulation,
processes and checkpoints; the rest is here: `sample_groups` and `compute_loss`.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

from safe import files

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from config import Limits, knob, knobs_text, parse, rollout_limits
from training.settle import settle_training


@dataclass
class Training:
    model: str = knob("tiny", "preset (qwen2.5-vl-3b, -7b, -32b, qwen3-vl-2b, -4b, -8b), folder or Hub name")
    data: str = knob("toy", "toy | toy-mixture | deepeyes | seal | a folder")
    root: str = knob("", "folder of the deepeyes or seal files (default: from the Hub)")
    revision: str = knob("", "of the data on the Hub: a commit (of a model: OWNER/MODEL@COMMIT)")
    allow_outside: bool = knob(False, "rows may name pictures outside the data set's folder")
    limit: int = knob(0, "questions to train on at most, 0 for all (a first run: 2000)")
    mix: str = knob("", "ratio between sources, such as vstar:47,chart:30,thinklite_eureka:23")
    steps: int = knob(160, "optimiser steps, each on fresh trajectories")
    prompts: int = knob(16, "questions per step")
    group: int = knob(8, "trajectories per question, compared with one another")
    tool: Literal["on", "off", "blank"] = knob("on", "off: no zoom on offer, text alone; blank: grey crops")
    bonus: Literal["conditional", "unconditional", "none", "priced", "priced_all"] = knob(
        "conditional",
        "pays for a crop if the answer is right; unconditional: always; none: never; priced: a right answer "
        "pays call_price for each crop; priced_all: any answer does",
    )
    call_price: float = knob(0.05, "of each crop, where the bonus is priced")
    price_from: int = knob(0, "first steps in which crops cost nothing (and earn nothing)")
    temperature: float = knob(1.0, "of sampling; the trainer's logprobs use the same")
    lr: float = knob(1.5e-3, "learning rate of the LoRA weights")
    lr_schedule: Literal["linear", "constant"] = knob("linear", "constant: as in the paper")
    lora: int = knob(16, "rank of the LoRA on the language model's projections")
    optim: Literal["adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit"] = knob("adamw_torch", "optimiser")
    iterations: int = knob(1, "updates on the same trajectories; above 1 the clipping matters")
    clip_high: float = knob(0.2, "upper clip of the ratio (0.28: clip-higher)")
    advantage: Literal["std", "mean"] = knob("std", "std: over the group's standard deviation")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = knob("dapo", "how token losses are averaged")
    beta: float = knob(0.0, "weight of the KL term to the base; 0 needs no reference")
    curiosity: float = knob(0.0, "bonus for a crop while under 30 %% of a step's trajectories zoom")
    mask_overlong: bool = knob(False, "no advantage for running out of turns or tokens")
    refill: bool = knob(False, "replace groups without a gradient, once per step")
    guard: Literal["warn", "stop", "off"] = knob("warn", "when a health check fails")
    judge: str = knob("", "URL of an OpenAI-compatible endpoint for answers that rules can't tell")
    micro_batch: int = knob(64, "trajectories per pass; less where a step's number is no multiple of it")
    seed: int = knob(0, "of pictures, order and sampling")
    seeds: str = knob("", "several runs, one after the other, and a page of all: 0,1,2")
    eval_size: int = knob(500, "held-out questions before and after training, 0 for none")
    save_every: int = knob(1, "steps between checkpoints; a kill loses at most this many")
    show_every: int = knob(10, "steps between groups that are stored with their pictures")
    out: str = knob("", "run folder (default runs/MODEL-DATA, numbered if taken)")
    resume: bool = knob(False, "go on with the run in --out, or begin it where there is none")
    plan: bool = knob(False, "print all knobs, and the memory and time they need, and stop")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = knob(
        "none", "a tracker that gets each step's row, too"
    )
    merge: bool = knob(False, "at the end write base and adapter as one model, OUT/merged")


@dataclass
class Knobs(Limits, Training):
    """The flags of this script."""


WORLD = int(os.environ.get("WORLD_SIZE", 1))


def read_knobs(argv: list[str]) -> Knobs:
    """Parse and check the knobs, before anything heavy is imported. Exits with 2 and one clear line."""
    knobs, given = parse(Knobs, argv, __doc__)
    return settle_training(knobs, given, WORLD)


# --------------------------------------------------------------------------------------------------
# The heavy imports come after the knobs are checked: a mistyped flag should not cost ten seconds.

KNOBS = read_knobs(sys.argv[1:]) if __name__ == "__main__" else None
if KNOBS and KNOBS.seeds and not KNOBS.plan:
    from training.seeds import run_seeds

    sys.exit(run_seeds(KNOBS, sys.argv))
if KNOBS:
    os.environ.setdefault("OMP_NUM_THREADS", str(KNOBS.threads))
    # With no core to spare, threads that spin while they wait take the cores from one another.
    if KNOBS.threads * WORLD >= (os.cpu_count() or 1):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if WORLD == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process, one GPU

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig

from data import Sample, opened, readable
from engine.lora import master_lora
from engine.shared_prefix import install_packed, store_per_token, stored_per_token
from evaluation import scores
from evaluation.validation import HeldOut, load_questions
from grading.judge import Judge
from machine import memory_estimate, time_estimate
from model import load_model, lora_config, prepare_libraries, resolve
from reward import Reward, group_advantages, score
from rollout import Trajectory, rollout
from runlog import runs
from runlog.health import print_new_troubles
from runlog.render import make_page
from safe.lock import hold
from safe.signals import REQUEST, Stopped
from training.base import SafeTrainer, where_to_go_on
from training.grpo_variants import refill_dead_groups, training_totals
from training.settle import check_choices
from training.shutdown import finish, last_line


def split_groups(groups: list[list], size: int) -> list[list[list]]:
    """Cut the groups of a step into micro-batches of `size` members; those of a group stay together.

    >>> split_groups([["a1", "a2"], ["b1", "b2"]], 4), split_groups([["a1", "a2"], ["b1", "b2"]], 1)[2]
    ([[['a1', 'a2'], ['b1', 'b2']]], [['b1']])
    """
    members = [(number, member) for number, group in enumerate(groups) for member in group]
    micro_batches = []
    for start in range(0, len(members), size):
        part = groupby(members[start : start + size], key=lambda pair: pair[0])
        micro_batches.append([[member for _, member in pairs] for _, pairs in part])
    return micro_batches


def no_reward(**kwargs):
    """TRL wants a reward function. It is never called: see `sample_groups`."""


class ZoomGRPOTrainer(SafeTrainer):
    """GRPO on interleaved trajectories.

    TRL calls `_prepare_inputs` for each micro-batch, then `compute_loss` on what that returned, then its
    optimiser. What passes between the two are our own trajectories.
    """

    def __init__(self, *, samples: list[Sample], knobs: Knobs, run: Path, **settings):
        super().__init__(reward_funcs=no_reward, **settings)
        install_packed(self.model.get_base_model())
        master_lora(self.model)
        self.samples = samples
        self.knobs = knobs
        self.run = run
        self.judge = None
        self.rows = []  # of metrics.jsonl
        self.probes = []  # questions that are answered again and again, greedily, to be looked at
        self.micro_batches = []
        self.step_tokens = 0  # sampled tokens of the whole step, all processes
        self.stats = {}  # of the last rollout
        self.gaps = []  # largest |trainer's - sampler's logprob| of each micro-batch
        self.entropies = []  # of each trained token
        self.update_began = time.time()
        self.page_made = 0.0
        self.known_troubles = set()
        self.remove_callback(PrinterCallback)  # `log` prints a line for people

    # ---- sampling

    def _prepare_inputs(self, rows: list[dict]) -> list[list[Trajectory]]:
        """The next micro-batch: groups, or parts of them. When all have been used, a new rollout."""
        micro_steps = self.args.steps_per_generation
        if self._step % (micro_steps * self.num_iterations) == 0 or not self.micro_batches:
            self.micro_batches = []  # frees the features of the last pictures before the rollout
            rows = rows[:: self.knobs.group]  # TRL repeats each for its group
            samples = [self.readable_sample(row["index"]) for row in rows]
            groups = self.sample_groups(samples)
            self.micro_batches = split_groups(groups, self.args.per_device_train_batch_size)
        return self.micro_batches[self._step % micro_steps]

    def readable_sample(self, index: int) -> Sample:
        """Sample `index`, its picture opened; for one that can't be read the next one serves."""
        for k in range(len(self.samples)):
            if sample := opened(self.samples[(index + k) % len(self.samples)]):
                return sample
        raise ValueError("not one picture of the data set can be read")

    def sample_groups(self, samples: list[Sample]) -> list[list[Trajectory]]:
        """Trajectories -> rewards -> advantages: a group for each question of this process's step."""
        began = time.time()
        self.gaps = []
        groups, rewards = self.roll_and_score(samples)
        if self.knobs.refill:
            process = self.accelerator.process_index
            seed = f"{self.knobs.seed}-{self.state.global_step}-{process}"
            refill_dead_groups(groups, rewards, self, seed)
        for group, totals in zip(groups, training_totals(groups, rewards, self.knobs)):
            advantages = group_advantages(totals, self.knobs.advantage)
            for trajectory, advantage in zip(group, advantages):
                trajectory.advantage = advantage
        self.stats = scores.step_stats(groups, rewards) | {"sec_rollout": time.time() - began}
        if self.knobs.tool == "off":
            self.stats["tool_rate"] = None  # there was none to call
        tokens = sum(sum(trajectory.sampled) for group in groups for trajectory in group)
        tokens = torch.tensor(float(tokens), device=self.accelerator.device)
        self.step_tokens = self.accelerator.reduce(tokens, "sum").item()
        due = runs.is_shown(self.state.global_step, self.knobs.show_every)
        if due and self.accelerator.is_main_process:
            self.store_for_page(groups[0], rewards[0])
        self.update_began = time.time()
        return groups

    def roll_and_score(self, samples: list[Sample]) -> tuple[list, list]:
        """The trajectories of these samples' groups, and their rewards: two lists of groups."""
        group = self.knobs.group
        settings = {"group": group, "temperature": self.knobs.temperature}
        settings["tool"] = self.knobs.tool
        settings |= rollout_limits(self.knobs) | {"keep_features": True}
        trajectories = self.roll(rollout, self.model, self.processing_class, samples, **settings)
        knobs = self.knobs
        price = knobs.call_price if self.state.global_step >= knobs.price_from else 0.0
        self.pay = partial(score, bonus=knobs.bonus, call_price=price)
        rewards = list(map(self.pay, trajectories))
        if self.judge:  # many requests at once
            judged = partial(self.pay, judge=self.judge)
            with ThreadPoolExecutor(16) as pool:
                rewards = list(pool.map(judged, trajectories))
        starts = range(0, len(trajectories), group)
        groups = [trajectories[start : start + group] for start in starts]
        return groups, [rewards[start : start + group] for start in starts]

    # ---- the loss

    def compute_loss(self, model, groups, return_outputs=False, num_items_in_batch=None):
        """The GRPO loss of a micro-batch (DeepSeekMath, eq. 3; DAPO, eq. 8). For each sampled token:

            ratio = policy(token) / old policy(token)
            loss  = -min(ratio * A, clip(ratio, 1 - eps, 1 + eps_high) * A)  +  beta * KL(policy, base)

        A is the advantage of the token's trajectory. Observations carry no loss. On the first update after a
        rollout the policy is still the old one: the ratio is 1, and the gradient is A * grad logprob.
        """
        batch = [trajectory for group in groups for trajectory in group]
        groups = [self.members_with_gradient(group) for group in groups]
        # Where nothing is left, one trajectory goes on: DDP wants a gradient in every pass.
        groups = [group for group in groups if group] or [batch[:1]]
        live = [trajectory for group in groups for trajectory in group]  # B of them

        with self.accelerator.autocast():
            # (B, T) each; the mask is true where the policy sampled, and false on observations and padding
            logprobs, entropies, mask = model(packed=groups, temperature=self.temperature)
        self.entropies += entropies[mask].tolist()
        if live[0].old_logprobs is None:  # the first update on these trajectories
            self.gaps.append(scores.largest_gap(live, logprobs.detach()[mask]))
            store_per_token(live, "old_logprobs", logprobs.detach())
        old_logprobs = stored_per_token(live, "old_logprobs")  # (B, T)
        advantages = logprobs.new_tensor([[t.advantage] for t in live])  # (B, 1)

        ratio = (logprobs - old_logprobs).exp()  # (B, T)
        clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        loss = -torch.min(ratio * advantages, clipped * advantages)
        if self.beta:
            if live[0].base_logprobs is None:
                store_per_token(live, "base_logprobs", self.base_logprobs(model, groups))
            log_ratio = stored_per_token(live, "base_logprobs") - logprobs
            kl = log_ratio.exp() - log_ratio - 1  # Schulman's k3: unbiased, never negative
            loss = loss + self.beta * ratio * kl  # with the ratio its gradient is unbiased, too
        return self.average(loss * mask, mask, batch)

    def average(self, loss, mask, batch: list[Trajectory]) -> torch.Tensor:
        """Token losses (B, T) -> the micro-batch's share of the step's loss, as each paper has it.

        Trajectories without a gradient add zero, but count in the averages.
        """
        if self.loss_type == "dapo":  # mean over the step's tokens; DDP averages over processes
            return loss.sum() * self.accelerator.num_processes / self.step_tokens
        if self.loss_type == "bnpo":  # mean over the tokens of the micro-batch
            mean_loss = loss.sum() / sum(sum(trajectory.sampled) for trajectory in batch)
        elif self.loss_type == "grpo":  # mean over its tokens, then over trajectories
            mean_loss = (loss.sum(1) / mask.sum(1)).sum() / len(batch)
        else:  # dr_grpo: as grpo, but divided by a constant length: long answers are not favoured
            mean_loss = loss.sum() / (len(batch) * self.max_completion_length)
        return mean_loss / self.current_gradient_accumulation_steps

    def members_with_gradient(self, group: list[Trajectory]) -> list[Trajectory]:
        """The members that get a gradient: without a KL term, those with an advantage."""
        return group if self.beta else [t for t in group if abs(t.advantage) > 1e-9]

    def base_logprobs(self, model, groups) -> torch.Tensor:  # (B, T)
        """Logprobs under the reference: the model as it was, with its LoRA switched off."""
        bare = self.accelerator.unwrap_model(model)
        with torch.no_grad(), bare.disable_adapter(), self.accelerator.autocast():
            return bare(packed=groups, temperature=self.temperature)[0]

    # ---- logging and checkpoints

    def log(self, logs: dict, start_time=None) -> None:
        """One line per step: on the screen, in metrics.jsonl, and for the tracker of --report_to."""
        if "loss" not in logs:  # the summary at the end of training
            return
        own = dict(self.stats)
        own["entropy"] = scores.mean(self.entropies)
        own["logp_gap"] = max(self.gaps, default=0.0)
        own["asked_to_stop"] = REQUEST.number
        own["unjudged"] = float(self.judge.missed) if self.judge else None
        own["sec_train"] = time.time() - self.update_began
        self.entropies = []
        parts = gather_object([own])
        # Whichever process has heard it, all stop
        REQUEST.number = max(part["asked_to_stop"] for part in parts)
        stop = [self.accelerator.is_main_process and self.write_row(logs, parts)]
        row = self.rows[-1] if self.rows else {}  # of the main process, the only one with a tracker
        known = {key: value for key, value in row.items() if value is not None}
        super().log(logs | known, start_time)
        self.state.log_history.clear()  # metrics.jsonl has it; every checkpoint would hold all of it
        broadcast_object_list(stop)  # all processes stop together, or the others wait for ever
        self.control.should_training_stop |= stop[0]
        self.control.should_save |= stop[0]
        self.check_numbers()

    def write_row(self, logs: dict, parts: list[dict]) -> bool:
        """Write the step's line, from what each process has seen; returns whether the run should stop."""
        row = {
            "step": self.state.global_step,
            "loss": logs["loss"],
            "grad_norm": logs["grad_norm"],
        }
        for key in sorted(set().union(*parts)):
            row[key] = scores.mean_of_processes(parts, key)
        row["logp_gap"] = max(part["logp_gap"] for part in parts)
        row |= self.number_stats(logs["grad_norm"])
        row = {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in row.items()}
        asked = row.pop("asked_to_stop") > 0
        files.append_rows(self.run / "metrics.jsonl", row)
        self.rows.append(row)
        print(runs.step_text(row, self.args.max_steps, self.rows), flush=True)
        if time.time() - self.page_made > 60:
            make_page(self.run, draw=self.page_made > 0)  # the first one at once
            self.page_made = time.time()
        is_new = self.knobs.guard != "off" and print_new_troubles(self.rows, self.known_troubles)
        return asked or (is_new and self.knobs.guard == "stop")

    def store_for_page(self, group: list[Trajectory], rewards: list[Reward]) -> None:
        """Store a group, and the probe questions' answers at this step."""
        step = self.state.global_step + 1
        processor = self.processing_class
        runs.store_group(self.run, step, group, rewards, processor.tokenizer)
        if self.probes:
            settings = rollout_limits(self.knobs) | {"temperature": 0}
            settings["tool"] = self.knobs.tool
            answers = rollout(self.model, processor, self.probes, **settings)
            rewards = list(map(self.pay, answers))
            runs.store_group(self.run, step, answers, rewards, processor.tokenizer, probe=True)

    def _save(self, output_dir=None, state_dict=None) -> None:
        """A checkpoint holds the adapter alone: it names its base, whose processor serves."""
        self.model.save_pretrained(output_dir, save_embedding_layers=False)

    def create_model_card(self, *args, **kwargs) -> None:
        """TRL would write one into the run folder at every checkpoint."""


def build_trainer(knobs: Knobs, model, processor, samples, run: Path, **more) -> ZoomGRPOTrainer:
    """The trainer, its TRL settings taken from the knobs; more: TRL settings that override these."""
    on_cpu = model.device.type == "cpu"
    settings = dict(
        output_dir=str(run), max_steps=knobs.steps, seed=knobs.seed,
        save_steps=knobs.save_every, save_total_limit=2,
        per_device_train_batch_size=knobs.micro_batch,
        gradient_accumulation_steps=knobs.prompts * knobs.group // knobs.micro_batch // WORLD,
        num_generations=knobs.group, num_iterations=knobs.iterations,
        max_completion_length=knobs.max_tokens, temperature=knobs.temperature,
        beta=knobs.beta, loss_type=knobs.loss_type, epsilon_high=knobs.clip_high,
        learning_rate=knobs.lr, lr_scheduler_type=knobs.lr_schedule, optim=knobs.optim,
        weight_decay=0.01, max_grad_norm=1.0,
        bf16=model.dtype == torch.bfloat16, use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu, ddp_find_unused_parameters=False,
        logging_steps=1, report_to=knobs.report_to, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    rows = [{"prompt": "", "index": index} for index in range(len(samples))]
    return ZoomGRPOTrainer(
        model=model,
        processing_class=processor,
        peft_config=lora_config(knobs.lora),
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(**settings | more),
        samples=samples,
        knobs=knobs,
        run=run,
    )


# --------------------------------------------------------------------------------------------------
# The command.


def main(knobs: Knobs) -> None:
    began = time.time()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=4))
    transformers.set_seed(knobs.seed)
    samples, questions = load_questions(knobs)
    resolve(knobs.model)  # fetched here, where the Hub's progress bars are on
    prepare_libraries(knobs.threads)
    if state.is_main_process:
        knobs.out = str(runs.make_run_folder(knobs))
    (knobs.out,) = broadcast_object_list([knobs.out])
    run = Path(knobs.out)
    if state.is_main_process:
        hold(run)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run / "tensorboard"))
    REQUEST.install()
    judge = Judge(knobs.judge, run / "judge.jsonl") if knobs.judge else None
    device = str(state.device)
    model, processor = load_model(knobs.model, quantize=knobs.quantize, device=device)
    held_out = HeldOut(questions, run / "eval.json", rollout_limits(knobs), judge)
    checkpoint, rows = where_to_go_on(run, knobs.save_every) if knobs.resume else (None, [])
    done = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    if done > knobs.steps:
        raise ValueError(f"{run} has {done} steps already; --steps {knobs.steps} would go back")
    if state.is_main_process:
        going_on = f", going on from {checkpoint.name}" if checkpoint else ""
        print(
            f"{knobs.model} on {knobs.data}: {len(samples)} questions, run {run}{going_on}",
            flush=True,
        )
        print(f"page, from the first step on: {(run / 'report.html').resolve().as_uri()}")
        if questions:
            print("held-out questions before training", flush=True)
            before = held_out.score(model, processor, "before", ("on", "off", "forced"))
            print(scores.score_table(before), flush=True)
        for name in ("metrics.jsonl", "trajectories.jsonl"):
            files.keep_rows(run / name, lambda row: row["step"] <= done)
    state.wait_for_everyone()
    trainer = build_trainer(knobs, model, processor, samples, run)
    trainer.judge = judge
    trainer.probes = questions[: runs.PROBES] or readable(samples[: runs.PROBES])
    trainer.rows = [row for row in rows if row["step"] <= done]
    trainer.norms = [row["grad_norm"] for row in trainer.rows if row["grad_norm"]]
    if done < knobs.steps:
        trainer.train_patiently(checkpoint)
        done = trainer.state.global_step
    else:  # killed while it was being scored: TRL would train one step more
        trainer._load_from_checkpoint(str(checkpoint))
    if REQUEST.number:
        if state.is_main_process:
            make_page(run)
        raise Stopped(REQUEST.number)
    if state.is_main_process:
        finish(knobs, run, trainer, held_out, done)
        print(f"{time.time() - began:.0f} s in all")
    state.wait_for_everyone()
    # The first process to leave with its connections open can abort the other
    state.destroy_process_group()


if __name__ == "__main__":
    with last_line(KNOBS):
        check_choices(KNOBS)  # before the data and the weights are fetched
        if KNOBS.plan:
            print(knobs_text(KNOBS))
            print(memory_estimate.table(KNOBS))
            print(time_estimate.time_here(KNOBS, WORLD))
            sys.exit()
        main(KNOBS)
