"""The statistics of scores: intervals of a share, paired questions, seeds beside questions."""

import math

import numpy as np

Z = 1.96  # deviations of a normal distribution that hold 95 %


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927).

    >>> [round(v, 3) for v in wilson(0.9, 100)], [round(v, 3) for v in wilson(0.0, 10)]
    ([0.826, 0.945], [0.0, 0.278])
    """
    noise = Z * Z / n
    center = share + noise / 2
    variance = share * (1 - share) / n + noise / (4 * n)
    spread = Z * math.sqrt(variance)
    scale = 1 + noise
    low = (center - spread) / scale
    high = (center + spread) / scale
    low = max(0.0, low)
    high = min(1.0, high)
    return low, high


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
        rows = rng.choice(n_seeds, n_seeds)
        columns = rng.choice(n_questions, n_questions)
        drawn = table[rows][:, columns]
        means.append(drawn.mean())
    bounds = np.quantile(means, (0.025, 0.975))
    return tuple(bounds.tolist())
