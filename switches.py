"""Changes to GRPO that others report to help, each a switch of train.py that is off by default.

To be skipped at first reading.
"""

import random

from reward import group_advantages
from scores import OVERLONG, is_dead

CURIOUS_BELOW = 0.3  # share of a step's trajectories that zoom


def training_totals(group, totals: list[float], curious: bool, knobs) -> list[float]:
    """The rewards of a group that train it: with the curiosity bonus, and with overlong ones made neutral.

    curious: so few trajectories of the step zoom that a crop is paid for. An overlong trajectory gets the
    mean of the others, and so no advantage.
    """
    if curious:
        totals = [total + knobs.curiosity * bool(t.boxes) for t, total in zip(group, totals)]
    if knobs.mask_overlong:
        kept = [total for t, total in zip(group, totals) if t.stop not in OVERLONG]
        neutral = sum(kept) / len(kept) if kept else 0.0
        totals = [neutral if t.stop in OVERLONG else total for t, total in zip(group, totals)]
    return totals


def set_advantages(groups, rewards_by_group, knobs) -> None:
    """Give every trajectory its advantage within its group."""
    zoomed = [bool(trajectory.boxes) for group in groups for trajectory in group]
    curious = knobs.curiosity > 0 and sum(zoomed) < CURIOUS_BELOW * len(zoomed)
    for group, rewards in zip(groups, rewards_by_group):
        totals = training_totals(group, [reward.total for reward in rewards], curious, knobs)
        for trajectory, advantage in zip(group, group_advantages(totals, knobs.advantage)):
            trajectory.advantage = advantage


def refill_dead_groups(groups, rewards_by_group, trainer, seed: str) -> None:
    """Other questions in place of those whose group has one reward throughout, if they do better."""
    dead = [place for place, rewards in enumerate(rewards_by_group) if is_dead(rewards)]
    rng = random.Random(seed)
    others = [trainer.readable_sample(rng.randrange(len(trainer.samples))) for _ in dead]
    for place, group, rewards in zip(dead, *trainer.roll_and_score(others)):
        if not is_dead(rewards):
            groups[place] = group
            rewards_by_group[place] = rewards
