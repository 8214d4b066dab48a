"""The stored scores of the study, as tables of seeds by questions."""

from statistics import fmean

from grading.boxes import iou

# The bases that runs start from, those first by which a claim is judged if they have all its arms.
BEFORE = "the base before"  # of runs whose line names none
BASES_ASKED = ("base 0", "base 1", BEFORE)
IN_TOY = "base 0"  # the one in toy/base


def by_base(lines: list[dict]) -> dict[str, "Stored"]:
    """The lines of docs/study.jsonl, for each base that has some."""
    stores = {}
    for base in BASES_ASKED:
        own = [line for line in lines if line.get("base", BEFORE) == base]
        if own:
            stores[base] = Stored(own)
    return stores


def with_arms(stores: dict[str, "Stored"], arms) -> dict[str, "Stored"]:
    """Those in which all these arms have runs."""
    return {base: stored for base, stored in stores.items() if all(map(stored.runs, arms))}


class Stored:
    """Lines of docs/study.jsonl by arm, seeds in order."""

    def __init__(self, lines: list[dict]):
        self.by_arm = {}
        for line in sorted(lines, key=by_seed):
            arm = line["arm"]
            self.by_arm.setdefault(arm, [])
            self.by_arm[arm].append(line)

    def runs(self, arm: str) -> list[dict]:
        return self.by_arm.get(arm, [])

    def scores(
        self,
        arm: str,
        asked: str,
        measure: str,
        kind: str = "",
    ) -> list[list[float]]:
        """(seeds, questions).

        asked: "data | arm"
        measure: of MEASURES
        kind: "read" and so on; "" for all
        """
        table = []
        for line in self.runs(arm):
            answers = line["asked"].get(asked)
            if answers:
                values = MEASURES[measure](answers)
                table.append(of_kind(values, answers, kind))
        return table

    def seed_means(
        self,
        arm: str,
        asked: str,
        measure: str,
        kind: str = "",
    ) -> list[float]:
        """The mean of each seed."""
        table = self.scores(arm, asked, measure, kind)
        return list(map(fmean, table))

    def metric(self, arm: str, key: str) -> list[list[float]]:
        """(seeds, steps) of metrics.jsonl; None where a step has none."""
        table = []
        for line in self.runs(arm):
            metrics = line.get("metrics", {})
            if key in metrics:
                table.append(metrics[key])
        return table

    def at_the_end(self, arm: str, key: str) -> list[float]:
        """The mean of a metric over the last ten steps, of each seed."""
        return [mean_known(row[-10:]) for row in self.metric(arm, key)]


def by_seed(line: dict) -> int:
    return line["seed"]


def mean_known(values: list[float | None]) -> float:
    """
    >>> mean_known([1.0, None, 2.0])
    1.5
    """
    return fmean(value for value in values if value is not None)


def of_kind(values: list[float], answers: dict, kind: str) -> list[float]:
    """The values of the questions of a kind, which are marked by its first letter."""
    if not kind:
        return values
    chosen = []
    for value, mark in zip(values, answers["kinds"]):
        if mark == kind[0]:
            chosen.append(value)
    return chosen


def correct(answers: dict) -> list[float]:
    return [float(mark) for mark in answers["right"]]


def zooms(answers: dict) -> list[float]:
    return [float(mark != "0") for mark in answers["crops"]]


def twice(answers: dict) -> list[float]:
    """Two crops or more, which `compare` mostly needs."""
    return [float(mark > "1") for mark in answers["crops"]]


def overlap(answers: dict) -> list[float]:
    """IoU of the first crop; 0 without one."""
    overlaps = []
    for first in answers["first"]:
        overlaps.append(iou(*first) if first else 0.0)
    return overlaps


def centred(answers: dict) -> list[float]:
    """Does the middle of the first crop lie inside the target?"""
    inside = []
    for first in answers["first"]:
        hit = bool(first) and is_inside(*first)
        inside.append(float(hit))
    return inside


def is_inside(box, target) -> bool:
    """Does the middle of a box lie inside a target?

    >>> is_inside((0, 0, 10, 10), (4, 4, 20, 20))
    True
    >>> is_inside((0, 0, 10, 10), (6, 4, 20, 20))
    False
    """
    left, top, right, bottom = box
    x = (left + right) / 2
    y = (top + bottom) / 2
    in_width = target[0] < x < target[2]
    in_height = target[1] < y < target[3]
    return in_width and in_height


MEASURES = {
    "right": correct,  # as it is stored
    "zooms": zooms,
    "twice": twice,
    "iou": overlap,
    "centred": centred,
}
