"""Changes to GRPO that others report to help, each a switch of train.py that is off by default.

To be skipped at first reading.
"""

import random

from evaluation.scores import OVERLONG, is_dead

CURIOUS_BELOW = 0.3  # share of a step's trajectories that zoom


def training_totals(groups, rewards_by_group, knobs) -> list[list[float]]:
    """The rewards that train, by group: with the curiosity bonus, and with overlong ones made neutral."""
    zoomed = [bool(t.delivered) for group in groups for t in group]
    curious = sum(zoomed) < CURIOUS_BELOW * len(zoomed)
    by_group = []
    for group, rewards in zip(groups, rewards_by_group):
        totals = [reward.total for reward in rewards]
        if curious and knobs.curiosity:
            totals = with_curiosity(group, totals, knobs.curiosity)
        if knobs.mask_overlong:
            totals = without_overlong(group, totals)
        by_group.append(totals)
    return by_group


def with_curiosity(group, totals: list[float], bonus: float) -> list[float]:
    """A bonus for a crop, while so few trajectories of the step zoom."""
    paid = []
    for trajectory, total in zip(group, totals):
        paid.append(total + bonus if trajectory.delivered else total)
    return paid


def without_overlong(group, totals: list[float]) -> list[float]:
    """A trajectory that ran out of turns or tokens gets the mean of the others, and so no advantage."""
    overlong = [trajectory.stop in OVERLONG for trajectory in group]
    kept = [total for total, cut in zip(totals, overlong) if not cut]
    neutral = sum(kept) / len(kept) if kept else 0.0
    return [neutral if cut else total for total, cut in zip(totals, overlong)]


def refill_dead_groups(groups, rewards_by_group, trainer, seed: str) -> None:
    """Sample other questions, once, for groups without a gradient; keep those whose rewards differ."""
    dead = []
    for place, rewards in enumerate(rewards_by_group):
        if is_dead(rewards):
            dead.append(place)
    rng = random.Random(seed)
    samples = []
    for _ in dead:
        index = rng.randrange(len(trainer.samples))
        samples.append(trainer.readable_sample(index))
    fresh_groups, fresh_rewards = trainer.roll_and_score(samples)
    for place, group, rewards in zip(dead, fresh_groups, fresh_rewards):
        if not is_dead(rewards):
            groups[place] = group
            rewards_by_group[place] = rewards
