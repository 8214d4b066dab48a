"""Boxes x1, y1, x2, y2: the corners of a region. The pixels' frame is the caller's; two boxes share one."""

Box = tuple[float, float, float, float]


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
    width = max(0, x2 - x1)
    height = max(0, y2 - y1)
    return width * height


def contains(outer: Box, inner: Box) -> bool:
    """Is the inner box wholly inside the outer one?"""
    left, top, right, bottom = outer
    x1, y1, x2, y2 = inner
    across = left <= x1 and x2 <= right
    along = top <= y1 and y2 <= bottom
    return across and along
