"""The statistics of scores: intervals of a share, paired questions, seeds beside questions."""

import math
from itertools import combinations
from statistics import fmean

import numpy as np


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927).

    >>> [round(v, 3) for v in wilson(0.9, 100)], [round(v, 3) for v in wilson(0.0, 10)]
    ([0.826, 0.945], [0.0, 0.278])
    """
    noise = z * z / n
    center = share + noise / 2
    variance = share * (1 - share) / n + noise / (4 * n)
    spread = z * math.sqrt(variance)
    scale = 1 + noise
    low = (center - spread) / scale
    high = (center + spread) / scale
    return max(0.0, low), min(1.0, high)


def mcnemar(only_one: int, only_other: int) -> float:
    """The exact two-sided p of McNemar's test, from the questions that only one of two arms got right.

    >>> round(mcnemar(8, 1), 4), mcnemar(0, 0)
    (0.0391, 1.0)
    """
    n = only_one + only_other
    fewer = min(only_one, only_other)
    ways = sum(math.comb(n, k) for k in range(fewer + 1))
    tail = ways / 2**n
    return min(1.0, 2 * tail)


def two_way_interval(table, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds and questions, both drawn anew (bootstrap; Owen 2007).

    table: (seeds, questions) of scores. An interval over questions alone says how well these few runs are
    known, and nothing about the next run.

    >>> low, high = two_way_interval([[1, 1, 0, 1] * 25, [0, 1, 0, 1] * 25, [1, 1, 1, 1] * 25])
    >>> 0.4 < low < 0.6 < 0.9 < high <= 1.0
    True
    """
    table = np.asarray(table, dtype=float)  # (S, Q)
    rng = np.random.default_rng(seed)
    n_seeds, n_questions = table.shape
    means = []
    for _ in range(draws):
        rows = rng.integers(n_seeds, size=n_seeds)
        columns = rng.integers(n_questions, size=n_questions)
        drawn = table[rows][:, columns]
        means.append(drawn.mean())
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def permutation_p(one: list[float], other: list[float]) -> tuple[float, float]:
    """The exact two-sided p of a difference of means when runs change sides, and the least it can be.

    >>> permutation_p([3, 4, 5], [0, 1, 2]), permutation_p([1, 2], [1, 2])[0]
    ((0.1, 0.1), 1.0)
    """
    values = [*one, *other]
    n = len(one)
    seen = abs(fmean(one) - fmean(other))
    splits = 0
    as_large = 0
    for chosen in combinations(range(len(values)), n):
        mine = [values[i] for i in chosen]
        rest = list(values)
        for value in mine:
            rest.remove(value)
        difference = abs(fmean(mine) - fmean(rest))
        splits += 1
        as_large += difference >= seen - 1e-12
    mirrored = len(one) == len(other)  # each split has one that swaps the sides
    least = 2 if mirrored else 1
    return as_large / splits, least / splits
