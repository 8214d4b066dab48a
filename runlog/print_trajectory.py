"""A trajectory as text, in the order of its tokens: `python rollout.py` prints one."""

import re
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal

from config import Limits, check_at_least, fill_limits, flag, parse
from reward import WEIGHTS, group_advantages
from safe.files import fail


@dataclass(frozen=True)
class ViewConfig(Limits):
    """The flags of rollout.py."""

    MOST_USED: ClassVar = "model kind number member group temperature seed"

    model: str = flag("tiny", "preset, folder of a model, or checkpoint of a run")
    kind: Literal["read", "compare", "glance"] = flag("read", "of the toy's questions")
    number: int = flag(2, "which of these questions")
    member: int = flag(-1, "which trajectory of its group; -1: the one with the highest reward")
    group: int = flag(8, "trajectories of the group")
    temperature: float = flag(1.0, "of sampling; 0 is greedy")
    seed: int = flag(5, "of sampling; with this one the untrained base zooms, fails, and guesses correctly")


def read_config(argv: list[str], doc: str) -> ViewConfig:
    config, flags_given = parse(ViewConfig, argv, doc)
    check_at_least(2, config, "group")
    check_at_least(0, config, "number temperature")
    if config.member >= config.group:
        fail(f"--member must be below --group {config.group}, counted from 0")
    return fill_limits(config, flags_given)


def print_group(group, processor, member: int = -1) -> None:
    """One member of a group (-1: the best), and how the others did."""
    totals = [trajectory.reward.total for trajectory in group]
    shown = totals.index(max(totals)) if member < 0 else member
    print_trajectory(group[shown], processor)
    print_reward(group[shown])
    for number, (total, advantage) in enumerate(zip(totals, group_advantages(totals))):
        mark = "  <- this one" if number == shown else ""
        print(f"member {number}: reward {total:5.2f}, advantage {advantage:+.2f}{mark}")


def print_trajectory(trajectory, processor) -> None:
    """The tokens in their order: the model's own with their logprobs, what it was given, and its images."""
    sample = trajectory.sample
    look = trajectory.images[0]
    print(f"question: {sample.text()}  (gold answer {sample.answer!r}, targets {sample.boxes})")
    visual = processor.family.tokens(look)
    print(f"first look: {sample.open().size} shown as {look.size}, {visual} visual tokens")
    print(f"prompt: {len(trajectory.prompt_ids)} tokens, given\n")
    calls = iter(trajectory.calls)
    tokens = zip(trajectory.sampled, trajectory.completion_ids, trajectory.logprobs)
    for sampled, span in groupby(tokens, key=lambda token: token[0]):
        _, ids, logprobs = zip(*span)
        if sampled:
            words = [f"{processor.tokenizer.decode([i])} ({lp:.2f})" for i, lp in zip(ids, logprobs)]
            print(f"WROTE {len(ids)} tokens, trained on, each with its logprob:\n{' '.join(words)}\n")
            continue
        call = next(calls)
        text = processor.tokenizer.decode(ids)
        if call.picture:
            what = f"region {call.region} of the original" if call.region else call.name
            crop = f"[the crop: {what}, shown as {call.picture.size}]"
            text = re.sub(r"(<\|image_pad\|>)+", crop, text)
        print(f"WAS GIVEN {len(ids)} tokens, not trained on:\n{text}")


def print_reward(trajectory) -> None:
    reward = trajectory.reward
    weights = WEIGHTS[trajectory.sample.tool]
    print(f"stop: {trajectory.stop}, answer: {trajectory.answer!r}")
    print(
        f"reward: {weights[0]} * accuracy {reward.accuracy:.0f} + {weights[1]} * format {reward.format:.0f}"
        f" + {weights[2]} * tool {reward.tool:.0f} = {reward.total:.2f}"
    )
