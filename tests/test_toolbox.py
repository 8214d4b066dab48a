"""Several tools: a second one by a schema and a function, in one trajectory with the zoom."""

import math

import numpy as np
import pytest
from conftest import both_families, call
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_rollout import full_logprobs

import rollout
import tools
from config import Limits
from data import Sample
from evaluation.scores import make_record, plain_grade, step_stats, summarise
from options.toolbox import TOOLBOX, image_rotate_tool, named
from reward import score
from tools import View, ZoomError

BOTH = "zoom,rotate"
# The look of an image twice as wide as high is 112 x 56 pixels.
ROOM = {
    "look_pixels": 112 * 56,
    "crop_pixels": 112 * 56,
    "max_turns": 4,
    "max_turn_tokens": 200,
    "max_tokens": 900,
}
LIMITS = Limits(tools=BOTH, **ROOM)


def rotate_call(angle) -> str:
    return f'<tool_call>{{"name": "image_rotate_tool", "arguments": {{"angle": {angle}}}}}</tool_call>'


def turn_ids(processor, text: str) -> list[int]:
    text += "" if text.endswith("</tool_call>") else "<|im_end|>"
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def play(processor, sample: Sample, turns: list[str], limits=LIMITS, **more):
    """The trajectory of these turns, and what each was answered with."""
    env = rollout.ZoomEnv(processor, limits, **more)
    (i,) = env.reset(sample, [])
    observations = []
    for turn in turns:
        ids = turn_ids(processor, turn)
        observations.append(env.step(i, ids, [0.0] * len(ids)))
    return env.trajectories[i], observations


@pytest.fixture
def arrow():
    """An image of 1,008 x 504 px: red at its left end, blue at its right end."""
    image = Image.new("RGB", (1008, 504), "white")
    image.paste("red", (0, 0, 100, 504))
    image.paste("blue", (908, 0, 1008, 504))
    return Sample("arrow", image, "What is at the top?", "blue", boxes=((908.0, 0.0, 1008.0, 504.0),))


def test_the_prompt_of_the_zoom_alone_is_what_it_was():
    """The tiny base knows it as one token, and the paper's model by heart."""
    assert tools.prompt("?", schemas=[tools.SCHEMA]) == tools.prompt("?")
    assert "image_rotate_tool" not in tools.prompt("?")
    assert tools.TOOL_SYSTEM in tools.prompt("?") and tools.TOOL_SUFFIX in tools.prompt("?")


def test_two_tools_are_offered_by_name():
    schemas = [tool.schema for tool in named(BOTH)]
    text = tools.prompt("What is it?", schemas=schemas)
    assert text.count('"type": "function"') == 2
    assert "call **image_zoom_in_tool** or **image_rotate_tool** if needed" in text
    assert "as it was first shown" in text
    assert "**image_rotate_tool**" in tools.observation(schemas=schemas)


def test_a_rotation_and_a_zoom_in_one_trajectory(processor, arrow):
    """The rotated image is all of it; a box after it still points into the image as first shown."""
    turns = [rotate_call(90), call(100, 0, 112, 56), "<answer>blue</answer>"]
    trajectory, (rotated, crop, _) = play(processor, arrow, turns)
    (image,) = rotated.images
    assert image.height == 2 * image.width
    pixels = np.asarray(image)
    assert tuple(pixels[2, image.width // 2]) == (0, 0, 255)  # the right end is on top
    assert tuple(pixels[-3, image.width // 2]) == (255, 0, 0)
    blue = np.asarray(crop.images[0])
    assert tuple(blue[blue.shape[0] // 2, blue.shape[1] // 2]) == (0, 0, 255)
    assert [each.name for each in trajectory.calls] == ["image_rotate_tool", "image_zoom_in_tool"]
    assert len(trajectory.boxes) == 1 and trajectory.delivered == 2
    assert len(trajectory.images) == 1 + trajectory.delivered
    pads = trajectory.completion_ids.count(processor.image_token_id)
    assert pads == sum(map(processor.family.tokens, trajectory.images[1:]))


def test_a_rotation_alone_earns_the_bonus_and_is_counted(processor, arrow):
    trajectory, _ = play(processor, arrow, [rotate_call(-90), "<answer>blue</answer>"])
    trajectory.reward = score(trajectory)
    assert trajectory.reward.tool == 1.0 and trajectory.reward.accuracy == 1.0
    stats = step_stats([[trajectory]])
    assert stats["tool_rate"] == stats["delivered"] == stats["rate_image_rotate_tool"] == 1.0
    assert stats["iou"] is None
    summary = summarise([make_record(trajectory, plain_grade(trajectory), "on")])
    assert summary["tool_rate"] == summary["crops"] == summary["rate_image_rotate_tool"] == 1.0


def test_control_arms_leave_a_rotation_alone_but_for_its_pixels(processor, arrow):
    for arm in ("random", "oracle"):
        trajectory, (rotated, _) = play(processor, arrow, [rotate_call(180), "<answer>x</answer>"], tool=arm)
        assert tuple(np.asarray(rotated.images[0])[5, 2]) == (0, 0, 255), arm
    _, (rotated, _) = play(processor, arrow, [rotate_call(180), "<answer>x</answer>"], tool="blank")
    assert len(set(rotated.images[0].getcolors())) == 1


def test_a_tool_that_is_not_offered_is_unknown(processor, arrow):
    limits = Limits(**ROOM)
    trajectory, _ = play(processor, arrow, [rotate_call(90), "<answer>x</answer>"], limits)
    assert trajectory.errors == [
        "unknown tool name; the only tool is image_zoom_in_tool. The picture is 112 x 56 pixels."
    ]


@pytest.mark.parametrize("angle", ['"90"', "true", "null", "[90]", "1e999", "-1e400", "1e7", "{}"])
def test_angles_that_are_refused(processor, arrow, angle):
    trajectory, (said, _) = play(processor, arrow, [rotate_call(angle), "<answer>x</answer>"])
    assert "degrees" in trajectory.errors[0] and not said.images and trajectory.delivered == 0


@settings(max_examples=100, deadline=None)
@given(st.floats(-720, 720), st.integers(1, 300), st.integers(1, 300))
def test_a_rotated_image_holds_all_of_it(angle, width, height):
    view = View(Image.new("RGB", (width, height), "red"), (56, 56))
    image, region = image_rotate_tool(view, {"angle": angle})
    assert region is None and view.original.size == (width, height)
    turned = math.radians(angle)
    across = abs(width * math.cos(turned)) + abs(height * math.sin(turned))
    assert abs(image.width - across) <= 2
    red = np.asarray(image)[..., 1] < 64
    assert red.sum() >= 0.8 * width * height - 4 * (width + height)


def test_quarter_turns_are_exact():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (30, 50, 3), dtype=np.uint8))
    for quarters in range(-5, 6):
        turned, _ = image_rotate_tool(View(image, (56, 56)), {"angle": 90 * quarters})
        assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), quarters))


def test_names_that_are_none():
    for names in ("rotate", "zoom,zoom", "zoom,spin", "", "zoom,"):
        with pytest.raises(ValueError):
            named(names)


def test_a_third_tool_is_a_schema_and_a_function(processor, arrow, monkeypatch):
    """As docs/yours.md has it."""

    def image_flip_tool(view, arguments):
        if arguments:
            raise ZoomError("it takes no arguments.")
        return view.original.transpose(Image.Transpose.FLIP_LEFT_RIGHT), None

    schema = {
        "type": "function",
        "function": {
            "name": "image_flip_tool",
            "description": "Mirror the image.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    monkeypatch.setitem(TOOLBOX, "flip", tools.Tool(schema, image_flip_tool))
    limits = Limits(tools="zoom,flip", **ROOM)
    flip = '<tool_call>{"name": "image_flip_tool", "arguments": {}}</tool_call>'
    trajectory, (flipped, _) = play(processor, arrow, [flip, "<answer>x</answer>"], limits)
    assert tuple(np.asarray(flipped.images[0])[5, 2]) == (0, 0, 255)
    assert trajectory.calls[0].name == "image_flip_tool"


@both_families
@pytest.mark.parametrize("engine", ["generate", "slots"])
def test_both_engines_see_a_rotated_image(processor, model, script, arrow, engine):
    """A random model with scripted turns: its logprobs are those of an uncached pass over everything."""
    turns = iter([rotate_call(30), call(20, 10, 90, 50), "<think> x</think><answer>A</answer>"])
    script(lambda rng: next(turns))
    limits = ROOM | {"engine": engine, "tools": BOTH}
    (trajectory,) = rollout.rollout(model, processor, [arrow], **limits)
    assert trajectory.delivered == 2 and len(trajectory.images) == 3
    sampled = np.array(trajectory.sampled, dtype=bool)
    expected = full_logprobs(model, processor, trajectory).numpy()
    gaps = np.abs(np.array(trajectory.logprobs) - expected)
    assert gaps[sampled].max() < 1e-4
