"""Teach a Qwen2.5-VL to think with images: GRPO from outcome reward alone, no SFT cold start (DeepEyes,
arXiv 2505.14362).

    python train.py                                   # the embedded tiny model on a laptop CPU, in minutes
    python train.py --out runs/mine --resume          # go on after a kill, with the knobs of the run
    python train.py --model qwen2.5-vl-3b --plan      # will it fit? Then the same without --plan
    torchrun --nproc-per-node 2 train.py ...          # two GPUs

One step is: sample a group of trajectories for each prompt, score them, update once. There is no reference
model (beta 0) and no clipping at work (the update is on-policy). What is ours is the rollout and the
reward; TRL does the rest.
"""

import copy
import functools
import json
import os
import random
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import stdev
from typing import Literal

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from knobs import BIG, fail, knob, parse, write_json  # noqa: E402  (the heavy imports wait for valid knobs)


@dataclass
class Knobs:
    model: str = knob("tiny", "preset (qwen2.5-vl-3b, -7b, -32b), folder or Hub name of a Qwen2.5-VL")
    quantize: Literal["", "4bit"] = knob("", "4bit: the language model in NF4")
    data: str = knob("toy", "toy | toy-mixture | deepeyes | seal | a folder")
    root: str = knob("", "folder of the deepeyes or seal files (default: from the Hub)")
    mix: str = knob("", "ratio between sources, such as vstar:47,chart:30,thinklite_eureka:23")
    steps: int = knob(160, "optimiser steps, each on fresh trajectories")
    prompts: int = knob(16, "questions per step")
    group: int = knob(8, "trajectories per question, compared with one another")
    bonus: Literal["conditional", "unconditional", "none"] = knob(
        "conditional", "conditional: on a right answer"
    )
    look_pixels: int = knob(
        112 * 112, "pixel budget of the first look; at full resolution zooming brings nothing new"
    )
    crop_pixels: int = knob(134 * 134, "pixel budget of each crop")
    max_turns: int = knob(4, "model turns per trajectory, so one zoom less than that")
    max_turn_tokens: int = knob(48, "tokens the model may write in one turn")
    max_tokens: int = knob(320, "tokens of a whole completion, observations included")
    temperature: float = knob(1.0, "of sampling; the trainer's logprobs use the same")
    lr: float = knob(1.5e-3, "learning rate of the LoRA weights")
    lr_schedule: Literal["linear", "constant"] = knob("linear", "linear: down to zero; constant: the paper's")
    lora: int = knob(16, "rank of the LoRA on the language model's projections")
    optim: Literal["adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit"] = knob("adamw_torch", "optimiser")
    iterations: int = knob(1, "updates on the same trajectories; above 1 the clipping matters")
    clip_high: float = knob(0.2, "upper clip of the ratio (0.28: clip-higher)")
    advantage: Literal["std", "mean"] = knob("std", "within the group: divided by the deviation, or not")
    curiosity: float = knob(0.0, "bonus for a crop while fewer than 30 %% of a step's trajectories zoom")
    mask_overlong: bool = knob(False, "trajectories that ran out of turns or tokens teach nothing")
    refill: bool = knob(False, "sample other questions once for groups without a gradient")
    guard: Literal["warn", "stop", "off"] = knob("warn", "when the run falls ill")
    judge: str = knob("", "URL of an OpenAI-compatible endpoint for answers that rules can't tell")
    beta: float = knob(0.0, "weight of the KL term to the base; 0 needs no reference")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = knob(
        "dapo", "TRL's; dapo: mean over a step's tokens"
    )
    pack_groups: bool = knob(True, "update: compute a group's prompt once (False: TRL's own forward pass)")
    engine: Literal["slots", "generate"] = knob("slots", "a cache slot a trajectory, or turn by turn")
    micro_batch: int = knob(
        64, "trajectories a pass; divides prompts * group (not given: the most that does)"
    )
    seed: int = knob(0, "of pictures, order and sampling")
    eval_size: int = knob(500, "held-out questions before and after training, 0 for none")
    save_every: int = knob(1, "steps between checkpoints; a killed run loses the steps since the last")
    show_every: int = knob(10, "steps between groups that are written to trajectories.jsonl, with pictures")
    threads: int = knob(2, "CPU threads, and processes of a tiny model's rollout; no more than free cores")
    batch: int = knob(256, "trajectories sampled at once; lower it where memory is short")
    out: str = knob("", "run folder (default runs/MODEL-DATA, numbered if taken)")
    resume: bool = knob(False, "go on with the run in --out")
    plan: bool = knob(False, "print the memory that these knobs need, and stop")
    merge: bool = knob(False, "at the end write base and adapter as one plain checkpoint, OUT/merged")


# What other models start from instead, where nothing else is given
BIG = BIG | {
    "data": "deepeyes", "steps": 80, "lr": 2e-5, "lr_schedule": "constant", "lora": 32, "micro_batch": 8,
    "save_every": 5, "eval_size": 200, "threads": 8,
}  # fmt: skip
WORLD = int(os.environ.get("WORLD_SIZE", 1))
PROBES = 6  # questions whose answers are stored over and over
CURIOUS_BELOW = 0.3  # share of trajectories that zoom
OVERLONG = ("turns", "length", "budget")  # stops for want of turns or tokens

TOY_SIZE = 4096  # questions of the toy set; the order of a run must not depend on its number of steps


def read_knobs(argv: list[str]) -> Knobs:
    """Parse and check the knobs, before anything heavy is imported. Exits with 2 and one clear line."""
    knobs, given = parse(Knobs, argv, __doc__)
    if knobs.resume:
        if extra := given - {"resume", "out", "steps"}:
            fail(
                f"--resume takes the run's own knobs from its args.json; drop --{', --'.join(sorted(extra))}"
            )
        try:
            stored = json.loads((Path(knobs.out) / "args.json").read_text())
        except (OSError, ValueError):
            fail(f"nothing to resume: {knobs.out or '(no --out given)'} holds no readable args.json")
        steps = knobs.steps if "steps" in given else stored["steps"]
        knobs = Knobs(**stored | {"out": knobs.out, "resume": True, "steps": steps})
    elif knobs.out and (Path(knobs.out) / "args.json").exists():
        fail(f"{knobs.out} holds a run already; go on with --resume, or give another --out")
    if knobs.model != "tiny" and not knobs.resume:
        for name in set(BIG) - given:
            setattr(knobs, name, BIG[name])
        if knobs.model in ("qwen2.5-vl-7b", "qwen2.5-vl-32b") and "quantize" not in given:
            knobs.quantize = "4bit"
    if "micro_batch" not in given and not knobs.resume:  # the largest that divides a smaller step
        many = knobs.prompts * knobs.group // WORLD
        knobs.micro_batch = max((d for d in range(1, knobs.micro_batch + 1) if many % d == 0), default=1)
    check_knobs(knobs)
    return knobs


def check_knobs(knobs: Knobs) -> None:
    positive = (
        "steps prompts look_pixels crop_pixels max_turns max_turn_tokens max_tokens lora micro_batch batch"
    )
    for name in (positive + " save_every show_every threads iterations").split():
        if getattr(knobs, name) < 1:
            fail(f"--{name} must be at least 1")
    for name in ("lr", "beta", "seed", "eval_size", "clip_high", "curiosity"):
        if not 0 <= getattr(knobs, name) < 2**32:  # false for nan, too
            fail(f"--{name} must be a number of at least 0")
    if knobs.group < 2:
        fail("--group must be at least 2: an advantage is a comparison within the group")
    if knobs.prompts % WORLD:
        fail(f"--prompts {knobs.prompts} must be a multiple of the {WORLD} processes: groups stay whole")
    if knobs.prompts * knobs.group // WORLD % knobs.micro_batch:
        share = "" if WORLD == 1 else f" over {WORLD} processes"
        many = knobs.prompts * knobs.group // WORLD
        fail(f"--micro_batch {knobs.micro_batch} must divide prompts * group{share} = {many}")
    if knobs.save_every % knobs.iterations:
        fail("--save_every must be a multiple of --iterations: trajectories are not saved")
    if not knobs.temperature > 0:
        fail("--temperature must be above 0: a group of equal trajectories teaches nothing")
    if (Path(knobs.model) / "adapter_config.json").exists():
        fail(f"{knobs.model} is a LoRA checkpoint; start from a whole model, or go on with --resume")


# --------------------------------------------------------------------------------------------------
# The heavy imports come after the knobs are checked: a mistyped flag should not cost ten seconds.

KNOBS = read_knobs(sys.argv[1:]) if __name__ == "__main__" else None
if KNOBS:
    os.environ.setdefault("OMP_NUM_THREADS", str(KNOBS.threads))
    if KNOBS.threads * WORLD >= (os.cpu_count() or 1):  # with no core to spare, threads that spin take
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the cores from one another
    if WORLD == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process, one GPU

import torch  # noqa: E402
import transformers  # noqa: E402
import trl.trainer.utils as trl_utils  # noqa: E402
from accelerate import PartialState  # noqa: E402
from accelerate.utils import broadcast_object_list, gather_object  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers.trainer_callback import PrinterCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

import plan  # noqa: E402
from data import load, mix, opened, readable  # noqa: E402
from eval import ALL_ARMS, EVAL_SEED, LIMITS, best_iou, evaluate, iou, mean, stored_scores, table  # noqa: E402
from judge import Judge  # noqa: E402
from model import grid_of, load_model, lora_config, merge, resolve  # noqa: E402
from pack import packed_logprobs  # noqa: E402
from report import health, make_page, read_rows, rewrite, store_trajectory  # noqa: E402
from reward import WEIGHTS, score  # noqa: E402
from rollout import pixel_budgets, rollout  # noqa: E402


class SeenPictures:
    """In place of TRL's image processor: what the rollout's vision tower has made of the pictures already.

    The tower is frozen, so that the update need not look again. TRL wants as many rows as there are 14-pixel
    patches; four of them make a visual token, whose features are cut in four.
    """

    def __init__(self, processor):
        self.processor, self.features = processor, {}  # by id of the picture

    def __getattr__(self, name):
        if name == "processor":  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self.processor, name)

    def __call__(self, images, **kwargs):
        rows = torch.cat([self.features[id(image)] for image in images])  # (visual tokens, width)
        self.features = {}  # asked for once; on a GPU they are worth dropping
        grids = torch.tensor([grid_of(image) for image in images])
        return transformers.BatchFeature(
            {"pixel_values": rows.view(4 * len(rows), -1), "image_grid_thw": grids}
        )


class ZoomGRPOTrainer(GRPOTrainer):
    """TRL's GRPO with our rollout in place of its generation. Private methods of TRL are overridden, hence
    the pin, and the tests that compare its logprobs with the sampler's."""

    def __init__(self, *, processing_class, samples, knobs: Knobs, run: Path, **kwargs):
        own = copy.copy(processing_class)  # the rollout needs the real one
        if knobs.pack_groups:
            own.image_processor = SeenPictures(processing_class.image_processor)
        kwargs |= {"reward_funcs": self.reward, "rollout_func": lambda prompts, trainer: trainer.roll()}
        super().__init__(processing_class=own, **kwargs)
        self.samples, self.knobs, self.run, self.processor = samples, knobs, run, processing_class
        base = self.model.get_base_model()
        if knobs.pack_groups:
            base.model.language_model.set_attn_implementation("shared_prompt")
        plain = base.forward

        @functools.wraps(plain)  # `generate` reads the signature
        def forward(*args, packed=None, **kwargs):  # by the front door: DDP has to see every pass
            return packed_logprobs(base, *packed) if packed else plain(*args, **kwargs)

        base.forward, visual = forward, base.model.visual
        # The vision tower is frozen; without pack_groups TRL would send gradients through it all the same.
        visual.forward = torch.no_grad()(visual.forward)
        self.stats, self.gaps, self.entropies, self.began, self.ill = {}, [], [], time.time(), set()
        self.idle = None  # rows of the micro-batch that are not worth computing
        self.probes = []  # questions that are answered again and again, greedily, to be looked at
        self.judge, self.refreshed = None, time.time()
        self.remove_callback(PrinterCallback)  # `log` prints a line for people

    def _generate_and_score_completions(self, inputs):
        self.rows = inputs  # TRL hands the rollout nothing but the prompts
        return super()._generate_and_score_completions(inputs)

    def _generate(self, prompts):
        self.tools = []  # TRL: take the branch of rollout_func and its env_mask ...
        output = list(super()._generate(prompts))
        self.tools = [self.roll]  # ... then the branch of "pictures inside the completion"; never called
        output[6] = output[7] = output[5].pop("images")  # all pictures of a trajectory in token order
        return tuple(output)

    def roll(self) -> dict:
        """Sample a group for every question of this step, and score it. Equal rows stand next to each
        other."""
        began, knobs, group = time.time(), self.knobs, self.knobs.group
        chosen = [self.readable(row["index"]) for row in self.rows[::group]]
        trajectories, rewards = self.sample(chosen)
        if knobs.refill:
            self.replace_dead_groups(trajectories, rewards)
        self.stats = step_stats(trajectories, rewards, group) | {"sec_rollout": time.time() - began}
        totals = training_rewards(trajectories, [r.total for r in rewards], knobs)
        main = self.accelerator.is_main_process
        if main and self.state.global_step % knobs.show_every == 0:
            self.show(
                trajectories[:group], rewards[:group], group_advantages(totals[:group], knobs.advantage)
            )
        self.began = time.time()
        if knobs.pack_groups:
            seen = {id(p): f for t in trajectories for p, f in zip(t.images, t.features, strict=True)}
            self.processing_class.image_processor.features = seen
        return {
            "prompt_ids": [t.prompt_ids for t in trajectories],
            "completion_ids": [t.completion_ids for t in trajectories],
            "logprobs": [t.logprobs for t in trajectories],
            "env_mask": [t.sampled for t in trajectories],
            "images": [t.images for t in trajectories],
            "total": totals,
        }

    def sample(self, chosen):
        """Trajectories of these samples' groups, and their rewards."""
        knobs = self.knobs
        limits = rollout_knobs(knobs) | {"group": knobs.group, "temperature": knobs.temperature}
        trajectories = rollout(self.model, self.processor, chosen, keep_features=knobs.pack_groups, **limits)
        # First here, in the main thread: math-verify's time limit is a signal, which no other thread can set.
        rewards = [score(t, bonus=knobs.bonus) for t in trajectories]
        if self.judge:  # many at once; formulas come from the cache now
            with ThreadPoolExecutor(16) as pool:
                rewards = list(
                    pool.map(functools.partial(score, bonus=knobs.bonus, judge=self.judge), trajectories)
                )
        return trajectories, rewards

    def show(self, trajectories, rewards, advantages) -> None:
        """Store a group, and what the probe questions get by now; refresh the page."""
        step, tokenizer = self.state.global_step + 1, self.processing_class.tokenizer
        show_group(self.run, step, trajectories, rewards, tokenizer, advantages)
        if self.probes:
            limits = rollout_knobs(self.knobs)
            answered = rollout(self.model, self.processor, self.probes, temperature=0, **limits)
            show_group(self.run, step, answered, [score(t) for t in answered], tokenizer)
        if time.time() - self.refreshed > 60 and step > 1:  # drawing takes a second or two
            make_page(self.run)
            self.refreshed = time.time()

    def replace_dead_groups(self, trajectories, rewards) -> None:
        """Other questions in place of those whose group has one reward throughout, if they do better."""
        group = self.knobs.group
        starts = [i for i in range(0, len(rewards), group) if dead(rewards[i : i + group])]
        rng = random.Random(f"{self.knobs.seed}-{self.state.global_step}-{self.accelerator.process_index}")
        fresh, scores = self.sample([self.readable(rng.randrange(len(self.samples))) for _ in starts])
        for k, i in enumerate(starts):
            part = slice(k * group, (k + 1) * group)
            if not dead(scores[part]):
                trajectories[i : i + group], rewards[i : i + group] = fresh[part], scores[part]

    def readable(self, index: int):
        """Sample `index`, its picture opened; for one that can't be read the next one serves."""
        for k in range(len(self.samples)):
            if sample := opened(self.samples[(index + k) % len(self.samples)]):
                return sample
        raise ValueError("not one picture of the data set can be read")

    @staticmethod
    def reward(prompts, completions, total, **kwargs):
        return total

    def _prepare_inputs(self, generation_batch):
        """TRL's own, but for its shuffle, which tears the groups apart."""
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = None  # the last ones: on a GPU they are worth dropping before a rollout
            batch = self._generate_and_score_completions(generation_batch)
            batches = trl_utils.split_tensor_dict(trl_utils.split_pixel_values_by_grid(batch), parts)
            self._buffered_inputs = [trl_utils.unsplit_pixel_values_by_grid(batch) for batch in batches]
        return self._buffered_inputs[self._step % parts]

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, kept, *args, **kwargs):
        if self.knobs.pack_groups:
            output = self.packed(model, input_ids, attention_mask, kept, **kwargs)
        else:
            output = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, kept, *args, **kwargs
            )
        self.logps, self.entropy = output[0].detach(), output[1].detach() if output[1] is not None else None
        return output

    def packed(self, model, ids, mask, kept, *, batch_size=None, num_images, **kwargs):
        """TRL's method with the prompts computed once; batch_size: rows at a time. Zeros for idle rows."""
        live = list(range(len(ids))) if self.idle is None else (~self.idle).nonzero()[:, 0].tolist()
        rows, grids = kwargs["pixel_values"], kwargs["image_grid_thw"]  # see SeenPictures
        features = [each.reshape(len(each) // 4, -1) for each in rows.split(grids.prod(-1).tolist())]
        first = [sum(num_images[:row]) for row in range(len(ids))]
        fixed, results = (self.processing_class.image_token_id, self.temperature), []
        for start in range(0, len(live), batch_size or len(live)):
            rows = live[start : start + (batch_size or len(live))]
            shown = [first[row] + k for row in rows for k in range(num_images[row])]
            pictures = [features[i] for i in shown], grids[shown].tolist(), [num_images[row] for row in rows]
            with self.accelerator.autocast():
                results.append(model(packed=(ids[rows], mask[rows], kept, *pictures, *fixed)))
        places, blank = torch.tensor(live, device=ids.device), torch.zeros(len(ids), kept, device=ids.device)
        return (*(blank.index_copy(0, places, torch.cat(part)) for part in zip(*results)), None)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's, with a note of the entropy and of how far its logprobs are from the sampler's.

        A trajectory without an advantage moves nothing (unless there is a KL term): it is not computed.
        """
        advantages, idle = inputs["advantages"], None
        if self.knobs.pack_groups and self.knobs.beta == 0:
            idle = advantages.abs() < 1e-9
            idle[0] &= not idle.all()  # a pass without any row has no gradient at all
        self.idle = idle
        try:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.idle = None
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        if idle is not None:
            mask &= ~idle[:, None]
        gaps = (self.logps - inputs["sampling_per_token_logps"]).abs()[mask]
        self.gaps.append(gaps.max().item() if len(gaps) else 0.0)
        self.entropies += self.entropy[mask].tolist()
        return loss

    def log(self, logs, start_time=None):
        """One line a step: on the screen and in metrics.jsonl, with keys that do not change."""
        super().log(logs, start_time)
        if "loss" not in logs:  # the summary at the end of training
            return
        own = self.stats | {"logp_gap": max(self.gaps), "entropy": mean(self.entropies)}
        own["sec_train"] = time.time() - self.began
        own = [own] if WORLD == 1 else gather_object([own])
        self.gaps, self.entropies = [], []
        stop = [self.accelerator.is_main_process and self.write_row(logs, own)]
        if WORLD > 1:  # all processes stop together, or the others wait for ever
            broadcast_object_list(stop)
        self.control.should_training_stop |= stop[0]
        self.control.should_save |= stop[0]

    def write_row(self, logs, own: list[dict]) -> bool:
        """The line of a step, from what each process has seen; should the run stop here?"""
        row = {"step": self.state.global_step, "loss": logs["loss"], "grad_norm": logs["grad_norm"]}
        row |= {key: mean(part.get(key) for part in own) for key in sorted(set().union(*own))}
        row["logp_gap"] = max(part["logp_gap"] for part in own)
        with (self.run / "metrics.jsonl").open("a") as file:
            file.write(
                json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()})
                + "\n"
            )
        shown = "reward accuracy tool_rate calls iou tokens dead_groups sec_rollout sec_train"
        text = {key: "  - " if row[key] is None else f"{row[key]:.2f}" for key in shown.split()}
        print(
            f"step {row['step']:>4}/{self.args.max_steps}  "
            "reward {reward}  accuracy {accuracy}  zoomed {tool_rate}  calls {calls}  IoU {iou}  "
            "tokens {tokens}  dead groups {dead_groups}  {sec_rollout} + {sec_train} s".format(**text),
            flush=True,
        )
        return self.unwell() and self.knobs.guard == "stop"

    def unwell(self) -> bool:
        """Say what has gone wrong, once for each trouble; is there any new one?"""
        troubles = health(read_rows(self.run / "metrics.jsonl")) if self.knobs.guard != "off" else []
        fresh = [(name, text) for name, text in troubles if name not in self.ill]
        for name, text in fresh:
            print(f"  UNWELL: {text}", flush=True)
            self.ill.add(name)
        return bool(fresh)

    def _save(self, output_dir=None, state_dict=None):
        """A checkpoint holds the adapter alone: it names its base, whose processor serves."""
        self.model.save_pretrained(output_dir, save_embedding_layers=False)

    def create_model_card(self, *args, **kwargs):
        pass  # TRL would write one into the run folder at every checkpoint


def dead(rewards) -> bool:
    """A group whose members all got the same: no advantage, no gradient."""
    return max(r.total for r in rewards) - min(r.total for r in rewards) < 1e-6


def training_rewards(trajectories, totals: list[float], knobs: Knobs) -> list[float]:
    """The rewards that train: with the curiosity bonus, and with overlong trajectories made neutral."""
    zoomed, totals = [bool(t.boxes) for t in trajectories], list(totals)
    if knobs.curiosity and sum(zoomed) < CURIOUS_BELOW * len(zoomed):
        totals = [total + knobs.curiosity * zoom for total, zoom in zip(totals, zoomed)]
    for start in range(0, len(totals), knobs.group) if knobs.mask_overlong else ():
        members = range(start, start + knobs.group)
        kept = [totals[i] for i in members if trajectories[i].stop not in OVERLONG]
        for i in members:
            if trajectories[i].stop in OVERLONG:  # the mean of the others: no advantage
                totals[i] = sum(kept) / len(kept) if kept else 0.0
    return totals


def step_stats(trajectories, rewards, group: int) -> dict:
    """What a step looked like, as means over its trajectories; None where there was nothing to average."""
    zoomed = [bool(t.boxes) for t in trajectories]
    groups = [rewards[i : i + group] for i in range(0, len(rewards), group)]
    lucky = [t for t, r in zip(trajectories, rewards) if t.boxes and t.sample.boxes and r.accuracy]
    weights = [WEIGHTS[t.sample.tool] for t in trajectories]
    by_kind = {}
    for t, r in zip(trajectories, rewards):
        by_kind.setdefault(t.sample.meta.get("kind"), []).append(r.accuracy)
    return {
        "reward": mean(r.total for r in rewards),
        "accuracy": mean(r.accuracy for r in rewards),
        "format": mean(r.format for r in rewards),
        "tool_rate": mean(z for t, z in zip(trajectories, zoomed) if t.sample.tool),
        "calls": mean(len(t.boxes) + len(t.errors) for t in trajectories),
        "delivered": mean(len(t.boxes) for t in trajectories),
        "errors": mean(len(t.errors) for t in trajectories),
        "iou": mean(map(best_iou, trajectories)),
        "acc_zoom": mean(r.accuracy for r, z in zip(rewards, zoomed) if z),
        "acc_no_zoom": mean(r.accuracy for r, z in zip(rewards, zoomed) if not z),
        "tokens": mean(sum(t.sampled) for t in trajectories),
        "dead_groups": mean(map(dead, groups)),
        "repeats": mean(map(repeats_box, trajectories)),
        "blind_luck": mean(best_iou(t) == 0 for t in lucky),
        "garbage": mean(map(is_garbage, trajectories)),
        "overlong": mean(t.stop in OVERLONG for t in trajectories),
        "reward_accuracy": mean(w[0] * r.accuracy for w, r in zip(weights, rewards)),
        "reward_format": mean(w[1] * r.format for w, r in zip(weights, rewards)),
        "reward_tool": mean(w[2] * r.tool for w, r in zip(weights, rewards)),
        **{f"accuracy_{kind}": mean(values) for kind, values in sorted(by_kind.items()) if kind},
    }


def repeats_box(trajectory) -> bool:
    """Does it zoom on (nearly) the same box again?"""
    boxes = trajectory.boxes
    return any(iou(a, b) > 0.9 for i, a in enumerate(boxes) for b in boxes[:i])


def is_garbage(trajectory) -> bool:
    """The same token eight times in a row, anywhere in what the model wrote."""
    ids = [i for i, s in zip(trajectory.completion_ids, trajectory.sampled) if s]
    run = 1
    for before, token in zip(ids, ids[1:]):
        run = run + 1 if token == before else 1
        if run >= 8:
            return True
    return False


def show_group(run: Path, step: int, trajectories, rewards, tokenizer, advantages=None) -> None:
    """Append a group (without advantages: the probe questions) to the stored trajectories."""
    for member, (t, reward) in enumerate(zip(trajectories, rewards)):
        probe = advantages is None
        stem = f"{step:05}-probe-{member}" if probe else f"{step:05}-{member}"
        look = f"probe-{member}-look.png" if probe else f"{step:05}-look.png"
        names = [look] + [f"{stem}-{i}.png" for i in range(1, len(t.images))]
        more = {"step": step, "member": member, "probe": probe, "reward": asdict(reward)}
        more["advantage"] = None if probe else advantages[member]
        store_trajectory(run, t, names, tokenizer, **more)


def group_advantages(totals: list[float], kind: str) -> list[float]:
    """What TRL makes of a group's rewards, for the page.

    >>> group_advantages([2.0, 0.0], "mean"), [round(a, 3) for a in group_advantages([2.0, 0.0], "std")]
    ([1.0, -1.0], [0.707, -0.707])
    """
    center = mean(totals)
    spread = stdev(totals) + 1e-4 if kind == "std" else 1.0
    return [(total - center) / spread for total in totals]


def make_run_folder(knobs: Knobs) -> None:
    """Create the run folder and write args.json; a default name that is taken gets a number."""
    name = f"runs/{Path(knobs.model).name}-{Path(knobs.data).name}"
    number = 1
    while not knobs.out:
        candidate = Path(name if number == 1 else f"{name}-{number}")
        knobs.out, number = "" if candidate.exists() else str(candidate), number + 1
    try:
        Path(knobs.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(knobs.out) / "args.json", asdict(knobs) | {"resume": False})
    except OSError as error:
        fail(f"can't write to the run folder {knobs.out}: {error.strerror}")


def last_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint; a half-written one (trainer_state.json comes last) is passed over."""
    complete = []
    for folder in run.glob("checkpoint-*"):
        try:
            complete.append((json.loads((folder / "trainer_state.json").read_text())["global_step"], folder))
        except (OSError, ValueError, KeyError):
            continue
    return max(complete)[1] if complete else None


def build_trainer(knobs: Knobs, model, processor, samples, run: Path, **more):
    """TRL's trainer with the knobs of the paper where they make sense; more: further settings of TRL."""
    on_cpu = model.device.type == "cpu"
    settings = dict(
        output_dir=str(run), max_steps=knobs.steps, save_steps=knobs.save_every, save_total_limit=2,
        per_device_train_batch_size=knobs.micro_batch, num_generations=knobs.group,
        gradient_accumulation_steps=knobs.prompts * knobs.group // knobs.micro_batch // WORLD,
        max_completion_length=knobs.max_tokens, temperature=knobs.temperature,
        beta=knobs.beta, loss_type=knobs.loss_type, num_iterations=knobs.iterations,
        epsilon_high=knobs.clip_high, scale_rewards="group" if knobs.advantage == "std" else "none",
        learning_rate=knobs.lr, lr_scheduler_type=knobs.lr_schedule, optim=knobs.optim,
        weight_decay=0.01, max_grad_norm=1.0, seed=knobs.seed,
        bf16=not on_cpu, use_cpu=on_cpu, gradient_checkpointing=not on_cpu,
        logging_steps=1, report_to="none", disable_tqdm=True,
        ddp_find_unused_parameters=False, remove_unused_columns=False,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "", "index": i} for i in range(len(samples))])
    return ZoomGRPOTrainer(
        model=model, processing_class=processor, peft_config=lora_config(knobs.lora), train_dataset=rows,
        args=GRPOConfig(**settings | more), samples=samples, knobs=knobs, run=run,
    )  # fmt: skip


def rollout_knobs(knobs: Knobs) -> dict:
    return {name: getattr(knobs, name) for name in (*LIMITS, "engine")} | {"lanes": knobs.threads}


def held_out(knobs: Knobs, samples, judge, run: Path, model, processor, when: str, arms, steps=0) -> dict:
    """Score the arms on the held-out questions; each is stored in eval.json at once, and not scored twice."""
    stored = stored_scores(run / "eval.json")
    if when == "after" and stored.get("steps") != steps:  # scores of a run that has been prolonged since
        stored |= {"after": {}, "steps": steps}
    limits = rollout_knobs(knobs) | {"judge": judge}
    for arm in arms:
        if arm not in stored.setdefault(when, {}):
            print(f"  {arm}: {len(samples)} questions ...", flush=True)
            stored[when][arm] = evaluate(model, processor, samples, arm, **limits)
            write_json(run / "eval.json", stored)
    return stored[when]


def main(knobs: Knobs) -> None:
    began, state = time.time(), PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=4))
    torch.set_num_threads(knobs.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.set_seed(knobs.seed)
    toy = knobs.data.startswith("toy")
    limit, root = TOY_SIZE if toy else None, knobs.root or None
    samples = load(knobs.data, split="train", limit=limit, seed=knobs.seed, root=root)
    samples = mix(samples, knobs.mix, knobs.seed) if knobs.mix else samples
    if len(samples) < knobs.prompts:
        raise ValueError(f"{knobs.data} has {len(samples)} questions, fewer than --prompts {knobs.prompts}")
    fresh = {"split": "test", "limit": knobs.eval_size, "seed": EVAL_SEED, "root": root}
    questions = readable(load(knobs.data, **fresh)) if knobs.eval_size else []
    if state.is_main_process:
        make_run_folder(knobs)
    (knobs.out,) = broadcast_object_list([knobs.out])
    run = Path(knobs.out)
    judge = Judge(knobs.judge, run / "judge.jsonl") if knobs.judge else None
    scored = functools.partial(held_out, knobs, questions, judge, run)
    model, processor = load_model(knobs.model, quantize=knobs.quantize or None, device=str(state.device))
    pixel_budgets(processor, knobs.look_pixels, knobs.crop_pixels)
    checkpoint = last_checkpoint(run) if knobs.resume else None
    done = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    if done > knobs.steps:
        raise ValueError(f"{run} has {done} steps already; --steps {knobs.steps} would go back")
    if state.is_main_process:
        going_on = f", going on from {checkpoint.name}" if checkpoint else ""
        print(
            f"{knobs.model} on {knobs.data}: {len(samples)} questions, run folder {run}{going_on}", flush=True
        )
        if knobs.eval_size:
            print("held-out questions before training", flush=True)
            before = scored(model, processor, "before", ("on", "off", "forced"))
            print(table(before), flush=True)
        for name in ("metrics.jsonl", "trajectories.jsonl"):
            rewrite(run / name, lambda row: row["step"] <= done)
    state.wait_for_everyone()
    trainer = build_trainer(knobs, model, processor, samples, run)
    trainer.judge, trainer.probes = judge, questions[:PROBES] or readable(samples[:PROBES])
    if done < knobs.steps:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        done = trainer.state.global_step
    else:  # killed while it was being scored: TRL would train one step more
        trainer._load_from_checkpoint(str(checkpoint))
    if state.is_main_process:
        finish(knobs, functools.partial(scored, processor=processor, steps=done), trainer, run)
        print(f"{time.time() - began:.0f} s in all")
    state.wait_for_everyone()


def finish(knobs: Knobs, scored, trainer, run: Path) -> None:
    """Scores with controls, curves, perhaps a merged checkpoint, and where it all is."""
    if knobs.eval_size:
        print("held-out questions after training, with controls", flush=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        after = scored(model, when="after", arms=ALL_ARMS)
        before = {f"before: {arm}": row for arm, row in stored_scores(run / "eval.json")["before"].items()}
        print(table(before | {f"after: {arm}": row for arm, row in after.items()}))
        print(f"scores: {run / 'eval.json'}")
    checkpoint = last_checkpoint(run)
    if knobs.merge:
        merge(str(checkpoint), run / "merged")
        print(f"merged: {run / 'merged'}")
    page = make_page(run)
    print(f"page:   {page}\ncurves: {page.with_name('curves.png')}\nmodel:  {checkpoint}")


if __name__ == "__main__":
    try:
        if KNOBS.plan:
            print(plan.table(KNOBS))
            sys.exit()
        resolve(KNOBS.model)
        main(KNOBS)
    except ValueError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: python train.py --out {KNOBS.out} --resume")
        sys.exit(130)
