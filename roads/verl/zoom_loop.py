"""Our trajectories on verl's engine: prompt, tool, loss mask and reward stay ours; verl samples, shards and
updates.

    python -m verl.trainer.main_ppo --config-path CHECKOUT/roads/verl --config-name lora data.train_files=...

The rows are those of `select_data.py --export verl`. Written for verl 0.9.1, whose interfaces change from one
release to the next; docs/scaling.md has the commands, and what has been run.
"""

from functools import lru_cache, partial
from pathlib import Path
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, register

from config import Limits
from data import Sample
from grading.judge import Judge
from model import find_model, load_processor
from reward import score
from rollout import ZoomEnv

NEVER = -100.0  # a logit's bias: vLLM allows no less


@lru_cache
def own_processor(name: str):
    """name: a folder, or one of the Hub."""
    return load_processor(find_model(name, weights=False))


@lru_cache
def own_judge(url: str) -> Judge | None:
    return Judge(url, Path("judge.jsonl")) if url else None


def sample_of(row: dict) -> Sample:
    """An exported row, as verl's reader hands it over: with its image opened."""
    content = row["raw_prompt"][-1]["content"]
    extra = row["extra_info"]
    return Sample(
        id=extra["id"],
        image=next(part["image"] for part in content if part["type"] == "image"),
        question=extra["without_options"],
        answer=extra["answer"],
        options=tuple(extra["options"]),
        boxes=tuple(map(tuple, extra["boxes"])),
        accepted=tuple(extra["accepted"]),
        source=row["data_source"],
        tool=extra["tool"],
    )


@register("zoom")
class ZoomLoop(AgentLoopBase):
    """limits: of config.Limits. bonus: of reward.score. judge: URL of a server, "" for rules alone; what it
    says is kept in judge.jsonl, in the working folder."""

    def __init__(
        self, *args, limits: dict | None = None, bonus: str = "conditional", judge: str = "", **more
    ):
        super().__init__(*args, **more)
        self.limits = Limits(**dict(limits or {}))
        self.bonus = bonus
        self.judge = own_judge(judge)
        longest = max(self.limits.max_tokens, self.limits.max_plain_tokens)
        if longest > self.rollout_config.response_length:
            raise ValueError(f"completions may have {longest} tokens: raise data.max_response_length")

    async def run(self, sampling_params: dict, **row) -> AgentLoopOutput:
        """One trajectory, from its question to its reward."""
        env = ZoomEnv(own_processor(self.config.actor_rollout_ref.model.path), self.limits)
        (number,) = await self.in_thread(env.reset, sample_of(row), [])
        trajectory = env.trajectories[number]
        length = len(trajectory.prompt_ids)
        if length > self.rollout_config.prompt_length:
            who = f"row {trajectory.sample.id}: its prompt has {length} tokens"
            raise ValueError(f"{who}: raise data.max_prompt_length, or lower look_pixels")
        request = uuid4().hex  # the same server for all turns: its cache holds the beginning
        while not trajectory.stop:
            left = env.tokens_left(number)
            ids, logprobs = await self.write_turn(request, trajectory, sampling_params, env, left)
            if len(ids) < left and (not ids or ids[-1] not in env.end_ids):
                raise RuntimeError("a turn came back without the id that ended it: is it kept by the server?")
            await self.in_thread(env.step, number, ids, logprobs)
        pay = partial(score, trajectory, bonus=self.bonus, judge=self.judge)
        reward = await self.in_thread(pay)
        return AgentLoopOutput(
            prompt_ids=trajectory.prompt_ids,
            response_ids=trajectory.completion_ids,
            response_mask=trajectory.sampled,
            response_logprobs=trajectory.logprobs if sampling_params.get("logprobs") else None,
            multi_modal_data={"images": trajectory.images},  # at the size at which they were shown
            reward_score=reward.total,
            num_turns=2 * len(trajectory.turns),  # the model's, and what each answers
            metrics={},
            extra_fields={
                "reward_extra_info": {
                    "acc": reward.accuracy,
                    "format": reward.format,
                    "tool": reward.tool,
                    "crops": trajectory.delivered,
                },
                "turn_scores": [],
                "tool_rewards": [],
            },
        )

    async def write_turn(self, request: str, trajectory, sampling_params: dict, env: ZoomEnv, left: int):
        """The ids and logprobs of the model's next turn."""
        own = {
            "stop_token_ids": env.end_ids,
            "max_tokens": max(1, left),
            "logit_bias": dict.fromkeys(env.banned_ids, NEVER),  # images come from the tool alone
        }
        reply = await self.server_manager.generate(
            request,
            prompt_ids=trajectory.prompt_ids + trajectory.completion_ids,
            sampling_params=sampling_params | own,
            image_data=trajectory.images,
        )
        ids = list(reply.token_ids)[:left]
        logprobs = list(reply.log_probs or [0.0] * len(ids))
        return ids, logprobs[: len(ids)]

    async def in_thread(self, work, *args):
        """What cuts an image or asks a judge must not hold up the other trajectories."""
        return await self.loop.run_in_executor(None, work, *args)
