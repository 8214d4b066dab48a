"""Teach a Qwen2.5-VL to think with images: GRPO from outcome reward alone, no SFT cold start (DeepEyes,
arXiv 2505.14362).

    python train.py                                   # the embedded tiny model on a laptop CPU, in minutes
    python train.py --out runs/mine --resume          # go on after a kill, with the flags of the run
    python train.py --model qwen2.5-vl-3b --plan      # will it fit? Then the same without --plan
    torchrun --standalone --nproc-per-node 2 train.py ...          # two GPUs

One step: sample a group of trajectories for each question, score them, compare each with its group, and raise
the probability of what did better. All of it stands in this file:

    sample_groups      trajectories (rollout.py), rewards (reward.py), advantages
    policy_logprobs    the forward pass of the update: what the policy now says of the tokens it sampled
                       (--engine slots, the default: the same, faster, by engine/shared_prefix.py)
    compute_loss       the GRPO loss of a micro-batch, and `average`, over which tokens it is a mean

As in the paper's release there is no KL term by default, and one update on each rollout; token losses are
averaged over the whole step, there over each micro-batch (--loss_type bnpo). TRL lends the optimiser, its
schedule, accumulation, processes and checkpoints.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean

from config import TrainConfig, rollout_limits
from training.settle import WORLD, command_config

if __name__ == "__main__":  # before the heavy imports: a mistyped flag should not cost ten seconds
    CONFIG = command_config(__doc__)

import torch
from datasets import Dataset
from trl import GRPOConfig

from data import Sample, opened
from engine.inputs import image_inputs, padded
from engine.lora import master_lora
from engine.shared_prefix import shared_prefix_logprobs, use_shared_prefix
from evaluation.scores import largest_gap
from model import lora_config
from reward import Reward, group_advantages, score
from rollout import Trajectory, rollout
from training.log import LoggedTrainer

CURIOUS_BELOW = 0.3  # of a step's trajectories zoom: then --curiosity pays for a crop


def policy_logprobs(model, processor, trajectories: list[Trajectory], temperature: float):
    """Logprobs, entropies and mask (B, T) of the completions: Hugging Face's own forward pass over a padded
    batch. The mask is true where the policy sampled, and false on observations and padding.

    model: with PEFT, perhaps with DDP around it. temperature: of the sampling. `shared_prefix_logprobs`
    computes the same, each prompt once for its group.
    """
    bare = getattr(model, "module", model)  # without DDP
    base = bare.get_base_model()
    # Prompts are padded on the left and completions on the right, so that completions begin in one column.
    prompts = padded([t.prompt_ids for t in trajectories], side="left")  # (B, P)
    completions = padded([t.completion_ids for t in trajectories])  # (B, T)
    ids = torch.cat([prompts, completions], 1).to(base.device)  # (B, P + T)
    real = ids >= 0
    ids = ids.masked_fill(~real, processor.tokenizer.pad_token_id)
    mask = padded([t.sampled for t in trajectories], 0).bool().to(base.device)  # (B, T)
    images = [image for t in trajectories for image in t.images]
    features = [feature.to(base.device) for t in trajectories for feature in t.features]
    base.model.rope_deltas = None  # those of a rollout would shift every position, silently
    length = mask.shape[1]
    logits = model(
        input_ids=ids,
        attention_mask=real.int(),
        logits_to_keep=length + 1,
        use_cache=False,
        **image_inputs(base, processor, ids, images, features),
    ).logits[:, :-1]  # (B, T, V): each token is predicted at the place before its own
    logprobs = (logits.float() / temperature).log_softmax(-1)
    chosen = logprobs.gather(-1, ids[:, -length:, None])[..., 0]
    with torch.no_grad():  # the entropy is only watched
        entropies = -(logprobs.exp() * logprobs).sum(-1)
    return chosen * mask, entropies * mask, mask


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


class ZoomGRPOTrainer(LoggedTrainer):
    """GRPO on interleaved trajectories. What is called in a step, in this order:

        training_step           training/base.py    once for each micro-batch, in place of TRL's:
          _prepare_inputs       train.py            the next micro-batch; before the first one a rollout:
            sample_groups       train.py              rollout(), score(), group_advantages()
              note_rollout      training/log.py       statistics, a group for the page
          compute_loss          train.py            policy_logprobs() or shared_prefix_logprobs(), the loss
          backward              accelerate
        leave_out_bad_update    training/base.py    drops an update that holds NaN or infinity
        optimizer.step          transformers        and its schedule, once all micro-batches are through
        log                     training/log.py     a line of metrics.jsonl
        _save_checkpoint        training/base.py

    Where memory runs out, training/base.py does a rollout or a micro-batch again in two halves.
    """

    def __init__(self, *, samples: list[Sample], config: TrainConfig, **settings):
        super().__init__(reward_funcs=no_reward, config=config, **settings)
        self.samples = samples
        self.micro_batches: list[list[list[Trajectory]]] = []
        master_lora(self.model)
        if config.engine == "slots":
            use_shared_prefix(self.model.get_base_model())

    # ---- sampling

    def _prepare_inputs(self, rows: list[dict]) -> list[list[Trajectory]]:
        """The next micro-batch: groups, or parts of them. When all have been used, a new rollout."""
        micro_steps = self.args.steps_per_generation
        if self._step % (micro_steps * self.num_iterations) == 0 or not self.micro_batches:
            self.micro_batches = []  # frees the features of the last images before the rollout
            rows = rows[:: self.config.group]  # TRL repeats each for its group
            samples = [self.readable_sample(row["index"]) for row in rows]
            groups = self.sample_groups(samples)
            self.micro_batches = split_groups(groups, self.args.per_device_train_batch_size)
        return self.micro_batches[self._step % micro_steps]

    def readable_sample(self, index: int) -> Sample:
        """Sample `index`, its image opened; for one that can't be read the next one serves."""
        for k in range(len(self.samples)):
            if sample := opened(self.samples[(index + k) % len(self.samples)]):
                return sample
        raise ValueError("not one image of the data set can be read")

    def sample_groups(self, samples: list[Sample]) -> list[list[Trajectory]]:
        """Trajectories -> rewards -> advantages: a group for each question of this process's step.

        For two questions and groups of two, rewards of 2.0 and 0.0, then 0.8 and 0.8, become advantages of
        0.71 and -0.71, then 0 and 0: a group whose members did equally well teaches nothing.
        """
        began = time.time()
        config = self.config
        sampling = rollout_limits(config) | {"group": config.group, "temperature": config.temperature}

        def sample(batch: int) -> list[Trajectory]:
            given = sampling | {"batch": batch, "tool": config.tool, "keep_features": True}
            return rollout(self.model, self.processing_class, samples, **given)

        trajectories = self.sample_in_memory(sample)
        self.score_all(trajectories)
        starts = range(0, len(trajectories), config.group)
        groups = [trajectories[start : start + config.group] for start in starts]
        for group in groups:
            totals = [trajectory.reward.total for trajectory in group]
            for trajectory, advantage in zip(group, group_advantages(totals, config.advantage)):
                trajectory.advantage = advantage
        self.note_rollout(groups, began)
        return groups

    def score_all(self, trajectories: list[Trajectory]) -> None:
        """Give each trajectory its reward: by the rules, then, if there is a judge, with its help."""
        few_zoom = fmean(t.delivered > 0 for t in trajectories) < CURIOUS_BELOW
        pay = partial(self.pay, curiosity=self.config.curiosity if few_zoom else 0.0)
        for trajectory in trajectories:
            trajectory.reward = pay(trajectory)
        if self.judge:  # many requests at once
            with ThreadPoolExecutor(16) as pool:
                rewards = pool.map(partial(pay, judge=self.judge), trajectories)
            for trajectory, reward in zip(trajectories, rewards):
                trajectory.reward = reward

    def pay(self, trajectory: Trajectory, judge=None, curiosity: float = 0.0) -> Reward:
        """The reward of a trajectory at this step."""
        config = self.config
        price = config.crop_price if self.state.global_step >= config.price_from else 0.0
        ours = {"crop_price": price, "crop_price_on": config.crop_price_on, "curiosity": curiosity}
        return score(trajectory, bonus=config.bonus, judge=judge, **ours)

    # ---- the loss

    def compute_loss(self, model, groups, return_outputs=False, num_items_in_batch=None, whole=None):
        """The GRPO loss of a micro-batch (DeepSeekMath, eq. 3; DAPO, eq. 8). For each sampled token:

            ratio = policy(token) / old policy(token)
            loss  = -min(ratio * A, clip(ratio, 1 - eps, 1 + eps_high) * A)  +  beta * KL(policy, base)

        A is the advantage of the token's trajectory. Observations carry no loss. On the first update after a
        rollout the policy is still the old one: the ratio is 1, and the gradient is A * grad logprob.

        whole: all trajectories of the micro-batch, where groups are a part of it (see training/base.py).
        """
        batch = [trajectory for group in groups for trajectory in group]
        groups = [self.members_with_gradient(group) for group in groups]
        # Where nothing is left, one trajectory goes on: DDP wants a gradient in every pass.
        groups = [group for group in groups if group] or [batch[:1]]
        live = [trajectory for group in groups for trajectory in group]  # B of them

        logprobs, entropies, mask = self.logprobs_of(model, groups)  # (B, T) each
        self.entropies += entropies[mask].tolist()
        if live[0].old_logprobs is None:  # the first update on these trajectories
            self.gaps.append(largest_gap(live, logprobs.detach()[mask]))
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
        return self.average(loss * mask, mask, whole or batch)

    def average(self, loss, mask, whole: list[Trajectory]) -> torch.Tensor:
        """Token losses (B, T) -> their part of the step's loss, as each paper has it.

        whole: all trajectories of the micro-batch, also those that have no gradient, and so no row here, or
        that another pass computes: they add nothing, but count in the averages.
        """
        if self.loss_type == "dapo":  # mean over the step's tokens; DDP averages over processes
            return loss.sum() * self.accelerator.num_processes / self.step_tokens
        if self.loss_type == "bnpo":  # mean over the tokens of the micro-batch
            mean_loss = loss.sum() / sum(sum(trajectory.sampled) for trajectory in whole)
        elif self.loss_type == "grpo":  # mean over its tokens, then over trajectories
            mean_loss = (loss.sum(1) / mask.sum(1)).sum() / len(whole)
        elif self.loss_type == "dr_grpo":  # over a constant length: long answers are not favoured
            mean_loss = loss.sum() / (len(whole) * self.max_completion_length)
        else:
            raise ValueError(f"--loss_type {self.loss_type} has no branch in `average`")
        return mean_loss / self.current_gradient_accumulation_steps

    def logprobs_of(self, model, groups: list[list[Trajectory]]) -> tuple[torch.Tensor, ...]:
        """Logprobs, entropies and mask (B, T) of these groups under the policy."""
        with self.accelerator.autocast():
            if self.config.engine == "slots":
                return shared_prefix_logprobs(model, groups, self.temperature)
            live = [trajectory for group in groups for trajectory in group]
            return policy_logprobs(model, self.processing_class, live, self.temperature)

    def members_with_gradient(self, group: list[Trajectory]) -> list[Trajectory]:
        """The members that get a gradient: without a KL term, those with an advantage."""
        return group if self.beta else [t for t in group if abs(t.advantage) > 1e-9]

    def base_logprobs(self, model, groups) -> torch.Tensor:  # (B, T)
        """Logprobs under the reference: the model as it was, with its LoRA switched off."""
        bare = self.accelerator.unwrap_model(model)
        with torch.no_grad(), bare.disable_adapter():
            return self.logprobs_of(bare, groups)[0]


def store_per_token(trajectories: list[Trajectory], name: str, rows: torch.Tensor) -> None:
    """Keep what was computed for each trajectory, rows (B, T), for later updates on it."""
    for trajectory, row in zip(trajectories, rows):
        setattr(trajectory, name, row[: len(trajectory.sampled)])


def stored_per_token(trajectories: list[Trajectory], name: str) -> torch.Tensor:  # (B, T)
    return padded([getattr(trajectory, name) for trajectory in trajectories], 0)


def build_trainer(config: TrainConfig, model, processor, samples, run: Path, **more) -> ZoomGRPOTrainer:
    """The trainer, with TRL's settings from our flags.

    more: of the trainer's constructor (judge, probes, rows), and under `trl` settings that override these.
    """
    on_cpu = model.device.type == "cpu"
    settings = dict(
        output_dir=str(run), max_steps=config.steps, seed=config.seed,
        save_steps=config.save_every, save_total_limit=2,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.prompts * config.group // config.micro_batch // WORLD,
        num_generations=config.group, num_iterations=config.iterations,
        max_completion_length=config.max_tokens, temperature=config.temperature,
        beta=config.beta, loss_type=config.loss_type, epsilon_high=config.clip_high,
        learning_rate=config.lr, lr_scheduler_type=config.lr_schedule, optim=config.optim,
        weight_decay=0.01, max_grad_norm=1.0,
        bf16=model.dtype == torch.bfloat16, use_cpu=on_cpu,
        gradient_checkpointing=not on_cpu, ddp_find_unused_parameters=False,
        logging_steps=1, report_to=config.report_to, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    rows = [{"prompt": "", "index": index} for index in range(len(samples))]
    return ZoomGRPOTrainer(
        model=model,
        processing_class=processor,
        peft_config=lora_config(config.lora),
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(**settings | more.pop("trl", {})),
        samples=samples,
        config=config,
        run=run,
        **more,
    )


if __name__ == "__main__":
    from training.run import run

    run(CONFIG, build_trainer)
