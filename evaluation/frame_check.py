"""Are a model's boxes read in the frame in which it means them? In a wrong frame every crop shows something
else, and the only symptom is a model that never learns to zoom.

The model is asked where tiles of the toy are. Mapped to the original image its boxes should lie on the tiles;
taken as pixels of the original they should not.
"""

import random
from statistics import fmean
from typing import NamedTuple

from config import Limits, rollout_limits
from data import Sample
from grading.boxes import answer_box, iou
from rollout import rollout
from tools import BOX
from toy.world import random_scene, render

ASKED = 16
# The toy's images are enlarged to 2,016 px, and the look shows at most a quarter of these pixels: so the
# model's frame is never that of the original.
ENLARGED = 2
LOOK_PIXELS = 1008 * 1008
SMALL_VOCABULARY = 10_000  # of a model that knows the words of its lessons alone
POINTS = 0.3  # mean IoU of a model that points at all


class FrameCheck(NamedTuple):
    """Mean IoU of the boxes and their tiles: in the model's frame, and as pixels of the original."""

    mapped: float
    unmapped: float

    def text(self) -> str:
        figures = f"IoU {self.mapped:.2f} in the model's frame, {self.unmapped:.2f} without"
        return f"boxes on the toy's tiles: {figures}"

    def is_good(self) -> bool:
        return self.mapped >= POINTS and self.mapped > 2 * self.unmapped


def frame_check(model, processor, limits: Limits) -> FrameCheck:
    """Ask for the boxes of 16 tiles, without the tool, greedily."""
    rng = random.Random(0)
    knows_words = len(processor.tokenizer) >= SMALL_VOCABULARY
    samples = []
    for number in range(ASKED):
        scene = random_scene(rng)
        tile = rng.choice(scene.tiles)
        image = render(scene)
        image = image.resize((ENLARGED * image.width, ENLARGED * image.height))
        question = f"Where is the {tile.colour} tile?"
        if knows_words:
            question += f" Give its box as {BOX}."
        box = tuple(ENLARGED * side for side in tile.box)
        samples.append(Sample(str(number), image, question, tile.colour, boxes=(box,)))
    settings = rollout_limits(limits) | {"tool": "off", "temperature": 0.0, "threads": 1, "tools": "zoom"}
    settings["look_pixels"] = min(limits.look_pixels, LOOK_PIXELS)
    mapped = []
    unmapped = []
    for trajectory in rollout(model, processor, samples, **settings):
        sample = trajectory.sample
        frame = trajectory.frame or trajectory.images[0].size
        mapped.append(overlap(trajectory.turns[-1], frame, sample))
        unmapped.append(overlap(trajectory.turns[-1], sample.image.size, sample))
    return FrameCheck(fmean(mapped), fmean(unmapped))


def overlap(text: str, frame: tuple[int, int], sample: Sample) -> float:
    """IoU of the target and the box in an answer that is read in this frame; 0 without a box."""
    box = answer_box(text, frame, sample.image.size)
    return iou(box, sample.boxes[0]) if box else 0.0
