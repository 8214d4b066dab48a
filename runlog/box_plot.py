"""Where a run's boxes lay around their target, early, in the middle and late: pure functions of the stored
trajectories."""

import math
from statistics import fmean, median

from grading.boxes import iou

MOST_BOXES = 60  # drawn of each part of a run
# In sides of the target: the least and the most that is shown to each side of its centre.
LEAST_REACH = 1.5
MOST_REACH = 12
PARTS = {1: ("so far",), 2: ("early", "late"), 3: ("early", "middle", "late")}


def box_clouds(rows: list[dict]) -> list[dict]:
    """The boxes of stored groups around their targets, for each part of a run: early, middle, late; [] where
    there are none. rows: of trajectories.jsonl."""
    rows = [row for row in rows if not row.get("probe")]
    steps = sorted({row["step"] for row in rows})
    names = PARTS[min(3, len(steps))] if steps else ()
    clouds = []
    for number, name in enumerate(names):
        start = number * len(steps) // len(names)
        end = (number + 1) * len(steps) // len(names)
        part = steps[start:end]
        cloud = box_cloud([row for row in rows if row["step"] in part and row["targets"]])
        clouds.append(cloud | {"name": name, "first": part[0], "last": part[-1]})
    return clouds if any(cloud["count"] for cloud in clouds) else []


def box_cloud(rows: list[dict]) -> dict:
    """How many boxes there are, and up to `MOST_BOXES` of them around their targets; the fraction that
    touches a target, the mean IoU, and the median box."""
    boxes = []
    overlaps = []
    for row in rows:
        targets = row["targets"]
        for box in row["boxes"]:
            boxes.append(around_target(box, targets))
            overlaps.append(max(iou(box, target) for target in targets))
    if not boxes:
        return {"count": 0, "boxes": []}
    return {
        "count": len(boxes),
        "boxes": boxes[:: math.ceil(len(boxes) / MOST_BOXES)],
        "touch": fmean(overlap > 0 for overlap in overlaps),
        "iou": fmean(overlaps),
        "median": [median(side) for side in zip(*boxes)],
    }


def around_target(box, targets) -> tuple[float, ...]:
    """A box as its target sees it: the target's centre is 0, 0 and its sides are 1. Of several targets the
    one that the box overlaps most; if it touches none, the nearest.

    >>> around_target((100, 100, 300, 200), [(100, 100, 200, 200), (900, 900, 990, 990)])
    (-0.5, -0.5, 1.5, 0.5)
    """
    target = max(targets, key=lambda target: (iou(box, target), -math.dist(centre(box), centre(target))))
    x, y = centre(target)
    width = max(1, target[2] - target[0])
    height = max(1, target[3] - target[1])
    left, top, right, bottom = box
    return (
        (left - x) / width,
        (top - y) / height,
        (right - x) / width,
        (bottom - y) / height,
    )


def centre(box) -> tuple[float, float]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


def reach(clouds: list[dict]) -> float:
    """How far to show around a target, in its sides: so far that the median boxes have room.

    >>> reach([{"median": [-1, -1, 2, 1]}, {"median": [-0.5, -0.5, 0.5, 0.5]}])
    3.0
    """
    furthest = max((abs(side) for cloud in clouds for side in cloud.get("median", ())), default=0)
    return min(MOST_REACH, max(LEAST_REACH, 1.5 * furthest))
