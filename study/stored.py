"""The stored scores of the study, as tables of seeds by questions."""

from statistics import fmean

from grading.boxes import iou

# The bases that runs start from, those first by which a claim is judged if they have all its arms.
BEFORE = "the base before"  # of runs whose line names none
BASES_ASKED = ("base 0", "base 1", BEFORE)  # base 0 is the one in toy/base


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
        for line in sorted(lines, key=lambda line: line["seed"]):
            self.by_arm.setdefault(line["arm"], []).append(line)

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
        column, value = MEASURES[measure]
        table = []
        for line in self.runs(arm):
            if answers := line["asked"].get(asked):
                marked = zip(answers[column], answers["kinds"])  # by the first letter of their kind
                table.append([float(value(mark)) for mark, own in marked if not kind or own == kind[0]])
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


def mean_known(values: list[float | None]) -> float:
    """
    >>> mean_known([1.0, None, 2.0])
    1.5
    """
    return fmean(value for value in values if value is not None)


def is_inside(box, target) -> bool:
    """Does the middle of a box lie inside a target?

    >>> is_inside((0, 0, 10, 10), (4, 4, 20, 20)), is_inside((0, 0, 10, 10), (6, 4, 20, 20))
    (True, False)
    """
    x = (box[0] + box[2]) / 2
    y = (box[1] + box[3]) / 2
    return target[0] < x < target[2] and target[1] < y < target[3]


# What is measured -> where it is stored, question by question, and the value there.
MEASURES = {
    "right": ("right", int),
    "zooms": ("crops", lambda mark: mark != "0"),
    "twice": ("crops", lambda mark: mark > "1"),  # which `compare` mostly needs
    "iou": ("first", lambda first: iou(*first) if first else 0.0),  # of the first crop; 0 without one
    "centred": ("first", lambda first: bool(first) and is_inside(*first)),
}
