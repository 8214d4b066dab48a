"""The controls that show whether a model looks: what is shown in place of a crop, and calls made for it.

To be skipped at first reading; rollout.py asks here where an arm other than "on" needs it.
"""

import zlib

from PIL import Image

import tools
from config import ARMS, Limits
from engine.inputs import expand_image_tokens
from grading.boxes import Box

ROLLOUT_ARMS = tuple(arm for arm in ARMS if arm != "forced")
ENGINES = ("generate", "slots")
MARGIN = 0.15  # an oracle crop shows the target and this share of its size around it


def check_arguments(tool: str, group: int, limits: Limits) -> None:
    """Raise ValueError for what can't be rolled out."""
    if tool not in ROLLOUT_ARMS:
        raise ValueError(f"tool must be one of {', '.join(ROLLOUT_ARMS)}, not {tool!r}")
    if limits.engine not in ENGINES:
        raise ValueError(f"engine must be generate or slots, not {limits.engine!r}")
    counts = [group, limits.max_turns, limits.max_turn_tokens, limits.max_tokens]
    if min(*counts, limits.batch, limits.threads) < 1:
        raise ValueError("group, batch, threads and all maxima must be at least 1")


def around(original: Image.Image, target: Box) -> Box:
    """A target with a margin and a minimum side, clamped to the image: whole ORIGINAL pixels.

    >>> around(Image.new("RGB", (500, 500)), (100, 100, 200, 110))
    (85.0, 91.0, 215.0, 119.0)
    """
    x1, y1, x2, y2 = target
    left, right = grown(x1, x2, original.width)
    top, bottom = grown(y1, y2, original.height)
    return float(left), float(top), float(right), float(bottom)


def grown(start: float, end: float, most: int) -> tuple[int, int]:
    """A side of a target with its margins, between 0 and `most`."""
    length = end - start
    margin = max(MARGIN * length, (tools.MIN_SIDE - length) / 2)
    return int(max(0, start - margin)), int(min(most, end + margin))


def replaced_region(arm: str, view: tools.View, trajectory, call: tools.Call, rng) -> Box:
    """What an arm shows in place of the region that was asked for, whole ORIGINAL pixels.

    random: a region of the same size anywhere, by `rng`, a random.Random. swap: something else of the same
    sort, see `swapped`. oracle: the sample's targets in turn. Where there is none of these, the model's own
    region.
    """
    original = view.original
    targets = trajectory.sample.boxes
    if arm == "random":
        x1, y1, x2, y2 = map(int, call.region)
        width = x2 - x1
        height = y2 - y1
        x = rng.randint(0, original.width - width)
        y = rng.randint(0, original.height - height)
        return x, y, x + width, y + height
    other = swapped(trajectory.sample)
    if arm == "swap" and other:
        box, _ = other
        return around(original, box)
    if arm == "oracle" and targets:
        turn = len(trajectory.boxes) % len(targets)
        return around(original, targets[turn])
    return call.region


def swapped(sample) -> tuple[Box, str] | None:
    """What the swap arm shows: one of `meta["others"]`, pairs of a box (ORIGINAL pixels) and what it says."""
    others = sample.meta.get("others")
    if not others:
        return None
    number = zlib.crc32(sample.id.encode())
    return others[number % len(others)]


def written_call(view: tools.View, region: Box) -> str:
    """A call on a region (ORIGINAL pixels) as a model would write it, in the frame of its boxes."""
    original = view.original
    sx = view.frame[0] / original.width
    sy = view.frame[1] / original.height
    x1, y1, x2, y2 = region
    numbers = [round(x1 * sx), round(y1 * sy), round(x2 * sx), round(y2 * sy)]
    return tools.CALL_OPENING + ",".join(map(str, numbers)) + "]}}</tool_call>"


def show_targets(env, trajectory, view: tools.View) -> None:
    """Begin with calls on the sample's targets and their crops, as if the model had made them."""
    for target in trajectory.sample.boxes:
        region = around(view.original, target)
        crop = view.original.crop(region)
        size = env.shown_size(crop, env.limits.crop_pixels)
        crop = tools.resize(crop, size)
        wording = trajectory.sample.wording
        shown = tools.observation(wording=wording, schemas=env.schemas)
        text = written_call(view, region) + "<|im_end|>" + shown
        trajectory.append_unsampled(expand_image_tokens(env.processor, text, [crop]))
        call = tools.Call(tools.TOOL, region=region, picture=crop)
        trajectory.calls.append(call)
        trajectory.images.append(crop)


def forced_openings(tokenizer, first_turns) -> list[list[int]]:
    """The ids that force a call: a trajectory's own first thought, if it had one, and an opened call up to
    the box. first_turns: trajectories of one turn."""
    opening = tokenizer(tools.CALL_OPENING, add_special_tokens=False)
    openings = []
    for trajectory in first_turns:
        if trajectory.sample.tool:
            thought = first_thought(tokenizer, trajectory.completion_ids)
            openings.append(thought + opening["input_ids"])
        else:
            openings.append([])
    return openings


def first_thought(tokenizer, ids: list[int]) -> list[int]:
    """The ids up to the end of the first thought; none if there is no thought."""
    for end in range(1, len(ids) + 1):
        if "</think>" in tokenizer.decode(ids[:end]):
            return ids[:end]
    return []
