"""The statistics of scores: intervals of a fraction, paired questions, seeds beside questions."""

import math
from itertools import combinations
from statistics import fmean, variance

import numpy as np

Z = 1.96  # deviations of a normal distribution that hold 95 %


def wilson(fraction: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a fraction of n questions (Wilson 1927).

    >>> [round(v, 3) for v in wilson(0.9, 100)], [round(v, 3) for v in wilson(0.0, 10)]
    ([0.826, 0.945], [0.0, 0.278])
    """
    noise = Z * Z / n
    center = fraction + noise / 2
    spread = Z * math.sqrt(fraction * (1 - fraction) / n + noise / (4 * n))
    scale = 1 + noise
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def mcnemar(only_one: int, only_other: int) -> float:
    """The exact two-sided p of McNemar's test. only_one, only_other: how many questions were answered
    correctly in one of two arms alone.

    >>> round(mcnemar(8, 1), 4), mcnemar(0, 0)
    (0.0391, 1.0)
    """
    n = only_one + only_other
    fewer = min(only_one, only_other)
    ways = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * ways / 2**n)


def two_way_interval(table, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds and questions: a bootstrap that draws both anew (Owen 2007).

    table: scores, (seeds, questions). An interval over the questions alone would tell how well these few runs
    are known, and nothing about the next run.

    >>> low, high = two_way_interval([[1, 1, 0, 1] * 25, [0, 1, 0, 1] * 25, [1, 1, 1, 1] * 25])
    >>> 0.4 < low < 0.6 < 0.9 < high <= 1.0
    True
    """
    table = np.asarray(table, dtype=float)  # (S, Q)
    rng = np.random.default_rng(seed)
    n_questions = table.shape[1]
    means = []
    for _ in range(draws):
        columns = rng.choice(n_questions, n_questions)
        means.append(drawn_mean(table, columns, rng))
    return tuple(np.quantile(means, (0.025, 0.975)).tolist())


def difference_interval(*bases, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of mean(one) - mean(other), of one base or of several. The bases are drawn anew, and
    the seeds of each arm; the questions are drawn for all together.

    bases: for each the scores of both arms (one, other), (seeds, questions), of the same questions.

    >>> high, low = [[1, 1, 1, 0] * 25] * 3, [[1, 0, 0, 0] * 25] * 3
    >>> least, most = difference_interval((high, low))
    >>> wider, _ = difference_interval((high, low), (low, low))  # the second base shows no difference
    >>> 0.3 < least < 0.5 < most < 0.7, wider
    (True, 0.0)
    """
    tables = [list(map(np.asarray, pair)) for pair in bases]
    n_questions = tables[0][0].shape[1]
    drawn = np.random.default_rng(seed + 1).choice(len(bases), (draws, len(bases)))
    rng = np.random.default_rng(seed)
    differences = []
    for chosen in drawn:
        columns = rng.choice(n_questions, n_questions)
        total = 0.0
        for one, other in [tables[base] for base in chosen]:
            total += drawn_mean(one, columns, rng)
            total -= drawn_mean(other, columns, rng)
        differences.append(total / len(bases))
    return tuple(np.quantile(differences, (0.025, 0.975)).tolist())


def drawn_mean(table, columns, rng) -> float:
    """The mean over these questions, and over as many seeds as there are, drawn with repetition."""
    rows = rng.choice(len(table), len(table))
    return table[rows][:, columns].mean()


def permutation_p(one: list[float], other: list[float]) -> tuple[float, float]:
    """The exact two-sided p of a difference between the means of two sets of runs, and the smallest p that so
    many runs can give. With three runs against three that is 0.1.

    >>> permutation_p([0.9, 0.8, 0.95], [0.1, 0.3, 0.2])
    (0.1, 0.1)
    """
    together = one + other
    total = sum(together)
    n = len(one)
    m = len(other)
    observed = abs(fmean(one) - fmean(other))
    insides = map(sum, combinations(together, n))
    differences = [abs(inside / n - (total - inside) / m) for inside in insides]
    as_far = sum(difference >= observed - 1e-12 for difference in differences)
    # With equal halves, the opposite choice is as far apart.
    least = 2 if n == m else 1
    return as_far / len(differences), least / len(differences)


def holm(ps: list[float]) -> list[float]:
    """Several p values, raised so that only one in twenty such lists has a false p below 0.05 (Holm 1979).

    >>> holm([0.01, 0.5, 0.03])
    [0.03, 0.5, 0.06]
    """
    left = len(ps)
    adjusted = {}
    largest = 0.0
    for p in sorted(ps):
        largest = max(largest, p * left)
        adjusted.setdefault(p, min(1.0, largest))
        left -= 1
    return [adjusted[p] for p in ps]


def detectable(one: list[float], other: list[float]) -> float:
    """The smallest difference between two sets of runs that a test at 0.05 finds in four cases of five."""
    n = len(one)
    m = len(other)
    squares = variance(one) * (n - 1) + variance(other) * (m - 1)
    return 2.8 * math.sqrt(squares / (n + m - 2) * (1 / n + 1 / m))
