"""The controls that show whether a model looks: what is shown in place of a crop, and calls made for it.

To be skipped at first reading; rollout.py asks here where an arm other than "on" needs it.
"""

from PIL import Image

import tools
from data import Box

ARMS = ("on", "off", "blank", "random", "oracle")  # of a rollout
MARGIN = 0.15  # an oracle crop shows the target and this share of its size around it
GREY = (128, 128, 128)


def around(original: Image.Image, target: Box) -> Box:
    """A target with a margin and a minimum side, clamped to the picture: whole ORIGINAL pixels.

    >>> around(Image.new("RGB", (500, 500)), (100, 100, 200, 110))
    (85.0, 91.0, 215.0, 119.0)
    """
    x1, y1, x2, y2 = target
    grow_x = max(MARGIN * (x2 - x1), (tools.MIN_SIDE - x2 + x1) / 2)
    grow_y = max(MARGIN * (y2 - y1), (tools.MIN_SIDE - y2 + y1) / 2)
    left = max(0, x1 - grow_x)
    top = max(0, y1 - grow_y)
    right = min(original.width, x2 + grow_x)
    bottom = min(original.height, y2 + grow_y)
    return tuple(float(int(v)) for v in (left, top, right, bottom))


def replaced_region(
    arm: str, original: Image.Image, region: Box, targets, nth: int, chance
) -> Box:
    """What an arm shows in place of the region that was asked for, whole ORIGINAL pixels.

    random: a region of the same size anywhere. oracle: the nth target in turn; without targets
    the model's own region. chance: a random.Random.
    """
    if arm == "random":
        width = int(region[2] - region[0])
        height = int(region[3] - region[1])
        x = chance.randint(0, original.width - width)
        y = chance.randint(0, original.height - height)
        return x, y, x + width, y + height
    if arm == "oracle" and targets:
        return around(original, targets[nth % len(targets)])
    return region


def written_call(view: tools.View, region: Box) -> str:
    """A call on a region (ORIGINAL pixels) as a model would write it, in the frame of its boxes."""
    sx = view.frame[0] / view.original.width
    sy = view.frame[1] / view.original.height
    numbers = [round(v * scale) for v, scale in zip(region, (sx, sy, sx, sy))]
    return f"{tools.CALL_OPENING}{','.join(map(str, numbers))}]}}}}</tool_call>"


def forced_openings(tokenizer, first_turns) -> list[list[int]]:
    """The ids that force a call: a trajectory's own first thought, if it had one, and an opened call up to the
    box. first_turns: trajectories of one turn."""
    opening = tokenizer(tools.CALL_OPENING, add_special_tokens=False)["input_ids"]
    result = []
    for trajectory in first_turns:
        ids = trajectory.completion_ids
        ends = (k for k in range(1, len(ids) + 1) if "</think>" in tokenizer.decode(ids[:k]))
        thought = ids[: next(ends, 0)]
        result.append(thought + opening if trajectory.sample.tool else [])
    return result
