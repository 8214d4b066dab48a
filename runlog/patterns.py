"""The paper's thinking patterns, found by rules in a stored trajectory."""

import re
from itertools import combinations

from grading.boxes import iou

PATTERNS = {
    "search": "a box apart from the one before, which touched no target",
    "comparison": "boxes on different targets",
    "confirmation": "a box over an earlier one",
    "correction": "an answer stated before a crop is not the final one",
}
STATED = re.compile(r"(?:answer is|it is|it's|=)\s*\**([A-Za-z0-9]+)")


def patterns(row: dict) -> list[str]:
    """The names of the `PATTERNS` that a trajectory shows. row: of trajectories.jsonl.

    Over an earlier box: an IoU above 0.5. An answer is stated after "answer is", "it is" or "="; the final
    one must be of its kind, with one target at most.

    >>> patterns({"boxes": [[0, 0, 9, 9], [50, 50, 60, 60]], "targets": [[50, 50, 60, 60]], "turns": []})
    ['search']
    >>> patterns({"boxes": [[0, 0, 9, 9]], "targets": [], "turns": ["it is B", "now"], "answer": "A"})
    ['correction']
    """
    boxes = row["boxes"]
    targets = row["targets"]
    touched = [[iou(box, target) > 0 for target in targets] for box in boxes]
    found = []
    for i in range(len(boxes) - 1):
        if targets and not any(touched[i]) and iou(boxes[i], boxes[i + 1]) < 0.1:
            found.append("search")
            break
    if len({hits.index(True) for hits in touched if sum(hits) == 1}) > 1:
        found.append("comparison")
    if any(iou(a, b) > 0.5 for a, b in combinations(boxes, 2)):
        found.append("confirmation")
    if is_corrected(row):
        found.append("correction")
    return found


def is_corrected(row: dict) -> bool:
    """Was another answer stated before a crop than in the end, and one of the same kind?"""
    stated = [match.lower() for turn in row["turns"][:-1] for match in STATED.findall(turn)]
    answer = (row.get("answer") or "").strip().lower()
    if not stated or not answer or len(row["targets"]) > 1:
        return False
    same_kind = answer_kind(stated[-1]) == answer_kind(answer)  # not "red=A", then "no" or "left"
    return same_kind and stated[-1] not in (answer, answer[:1])


def answer_kind(text: str) -> str:
    if text in ("yes", "no"):
        return "yes or no"
    return "letter" if len(text) == 1 else "text"
