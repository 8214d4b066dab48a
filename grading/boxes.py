"""Boxes x1, y1, x2, y2: the corners of a region. The pixels' frame is the caller's; two boxes share one."""

import re

Box = tuple[float, float, float, float]
NUMBER = r"(?<![\w.])(-?\d{1,6}(?:\.\d{1,6})?)(?![\w.]*\d)"


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes in one frame.

    >>> iou((0, 0, 10, 10), (5, 0, 15, 10))
    0.3333333333333333
    """
    x1, y1 = map(max, a[:2], b[:2])
    x2, y2 = map(min, a[2:], b[2:])
    shared = area((x1, y1, x2, y2))
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def area(box: Box) -> float:
    """The area in square pixels; 0 for a box whose corners are swapped."""
    x1, y1, x2, y2 = box
    return max(0, x2 - x1) * max(0, y2 - y1)


def contains(outer: Box, inner: Box) -> bool:
    """Is the inner box wholly inside the outer one?"""
    left, top, right, bottom = outer
    x1, y1, x2, y2 = inner
    return left <= x1 and top <= y1 and x2 <= right and y2 <= bottom


def answer_box(answer: str | None, frame, original) -> Box | None:
    """The first box of an answer, in ORIGINAL pixels, or None.

    frame, original: (width, height) of the frame of the model's boxes, and of the original image.

    >>> answer_box('{"bbox_2d": [10, 20, 30, 40]}', (100, 100), (1000, 500))
    (100.0, 100.0, 300.0, 200.0)
    >>> answer_box("somewhere near 3, 4", (100, 100), (1000, 500))
    """
    four = r"\s*,\s*".join([NUMBER] * 4)
    match = re.search(rf"[\[(]\s*{four}\s*[\])]", answer or "")
    found = match.groups() if match else re.findall(NUMBER, answer or "")
    # "(10,20),(30,40)" and "x1=10, y1=20, ..." are boxes, too, if there are no other numbers.
    if len(found) != 4:
        return None
    width, height = original
    x1, y1, x2, y2 = map(float, found)
    across = width / frame[0]
    along = height / frame[1]
    return (
        max(0.0, x1 * across),
        max(0.0, y1 * along),
        min(float(width), x2 * across),
        min(float(height), y2 * along),
    )
