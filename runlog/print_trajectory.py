"""A trajectory as text, in the order of its tokens: `python rollout.py` prints one."""

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from config import Limits, check_at_least, fill_limits, knob, parse
from reward import WEIGHTS, group_advantages
from safe.files import fail


@dataclass
class Viewing:
    model: str = knob("tiny", "preset, folder of a model, or checkpoint of a run")
    kind: Literal["read", "compare", "glance"] = knob("read", "of the toy's questions")
    number: int = knob(2, "which of these questions")
    member: int = knob(-1, "which trajectory of its group; -1: the one with the highest reward")
    group: int = knob(8, "trajectories of the group")
    temperature: float = knob(1.0, "of sampling; 0 is greedy")
    seed: int = knob(2, "of sampling; with this one the untrained base zooms, fails and guesses")


@dataclass
class Knobs(Limits, Viewing):
    """The flags of rollout.py."""


def read_knobs(argv: list[str], doc: str) -> Knobs:
    knobs, given = parse(Knobs, argv, doc)
    fill_limits(knobs, given)
    check_at_least(2, knobs, "group")
    check_at_least(0, knobs, "number temperature")
    if knobs.member >= knobs.group:
        fail(f"--member must be below --group {knobs.group}, counted from 0")
    return knobs


def print_group(group, rewards, processor, member: int = -1) -> None:
    """One member of a group (-1: the best), and how the others did."""
    totals = [reward.total for reward in rewards]
    shown = totals.index(max(totals)) if member < 0 else member
    print_trajectory(group[shown], processor)
    print_reward(group[shown], rewards[shown])
    for number, (total, advantage) in enumerate(zip(totals, group_advantages(totals))):
        mark = "  <- this one" if number == shown else ""
        print(f"member {number}: reward {total:5.2f}, advantage {advantage:+.2f}{mark}")


def print_trajectory(trajectory, processor) -> None:
    """The tokens in their order: the model's own with their logprobs, what it was given, and its pictures."""
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


def print_reward(trajectory, reward) -> None:
    weights = WEIGHTS[trajectory.sample.tool]
    print(f"stop: {trajectory.stop}, answer: {trajectory.answer!r}")
    print(
        f"reward: {weights[0]} * accuracy {reward.accuracy:.0f} + {weights[1]} * format {reward.format:.0f}"
        f" + {weights[2]} * tool {reward.tool:.0f} = {reward.total:.2f}"
    )
