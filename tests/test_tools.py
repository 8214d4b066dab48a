"""The zoom tool: calls are hostile input, and boxes live in two frames."""

import contextlib
import json
from pathlib import Path

import pytest
from conftest import call
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tools
from grading.answers import find_answer
from tools import View, ZoomError, find_call, fit, parse_call


def test_the_schema_asks_for_what_the_parser_reads():
    """The released prompt required "bbox" where the tool read "bbox_2d"."""
    parameters = tools.SCHEMA["function"]["parameters"]
    assert parameters["required"] == ["bbox_2d"] and "bbox_2d" in parameters["properties"]
    assert json.dumps(tools.SCHEMA) in tools.TOOL_SYSTEM
    assert parse_call(tools.TOOL_SYSTEM) == (
        10,
        20,
        100,
        200,
    )  # the example in the prompt is a valid call
    assert (
        find_call(tools.CALL_OPENING + "1,2,3,4]}}</tool_call>")
        and "call **image_zoom_in_tool** if needed" in tools.TOOL_SUFFIX
    )


REFUSED = {
    "pair was found": ["no call", "<tool_call>{}", "{}</tool_call>", "</tool_call><tool_call>"],
    "not valid JSON": [
        "<tool_call>[1,2</tool_call>",
        "<tool_call>{'name': 1}</tool_call>",
        "<tool_call></tool_call>",
        call("NaN", 2, 3, 4),
        call("Infinity", 2, 3, 4),
        call("-Infinity", 2, 3, 4),
        "<tool_call>__import__('os')</tool_call>",
        "<tool_call>" + "[" * 1500 + "</tool_call>",
    ],
    "JSON object": [
        "<tool_call>[1]</tool_call>",
        "<tool_call>7</tool_call>",
        '<tool_call>{"name": "x"}</tool_call>',
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": [1, 2, 3, 4]}</tool_call>',
    ],
    "unknown tool": [call(1, 2, 3, 4, name="image_rotate_tool")],
    "is missing": [
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox": [1, 2, 3, 4]}}</tool_call>'
    ],
    "exactly 4": [
        call(1, 2, 3),
        call(1, 2, 3, 4, 5),
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": "1,2,3,4"}}</tool_call>',
    ],
    "must be a number": [
        call(1, 2, 3, '"4"'),
        call(1, 2, 3, "null"),
        call(1, 2, 3, "true"),
        call(1, 2, 3, "[4]"),
    ],
    "must be finite": [call(1, 2, 3, "1e999")],
    "too large": [call(1, 2, 3, 10**7), call(-(10**300), 2, 3, 4), call(1, 2, 3, "9" * 400)],
    "at most": ["<tool_call>" + " " * 3000 + "</tool_call>"],
}


@pytest.mark.parametrize(
    ("rule", "text"), [(rule, text) for rule, texts in REFUSED.items() for text in texts]
)
def test_broken_calls_name_their_rule_and_the_size(rule, text):
    with pytest.raises(ZoomError, match=rule) as error:
        parse_call(text, (640, 480))
    assert "640 x 480" in str(error.value)


def test_the_last_call_counts():
    assert parse_call(call(1, 2, 30, 40) + "no: " + call(5, 6, 70, 80) + " ok") == (
        5,
        6,
        70,
        80,
    )
    assert parse_call(call(1, 2, 30, 40) + "<tool_call>open") == (1, 2, 30, 40)


@given(
    st.text()
    | st.text(alphabet='{}[]",:<>/tol_cabx2d1234567890.eE+- ').map(lambda t: f"<tool_call>{t}</tool_call>")
)
def test_any_text_parses_or_is_refused(text):
    """Never another exception, and what parses are four finite numbers."""
    with contextlib.suppress(ZoomError):
        assert all(abs(v) <= 1e6 for v in parse_call(text))


def test_parsing_takes_linear_time():
    """A megabyte of openings; a quadratic scan would take minutes."""
    with pytest.raises(ZoomError):
        parse_call("<tool_call>" * 100_000)
    assert find_answer("<answer>" * 100_000) is None
    assert find_answer("<answer></answer>" * 50_000) is None


@pytest.mark.parametrize(
    ("rule", "box"),
    [
        ("swapped", (50, 10, 20, 40)),
        ("swapped", (10, 50, 20, 40)),
        ("empty", (10, 10, 10, 40)),
        ("outside", (-30, 0, -1, 50)),
        ("outside", (0, 80, 50, 120)),
        ("too thin", (10, 10, 12, 50)),
        ("finite", (float("nan"), 0, 5, 5)),
    ],
)
def test_bad_boxes_name_their_rule_and_the_size(rule, box):
    with pytest.raises(ZoomError, match=rule) as error:
        View(Image.new("RGB", (1000, 800)), (100, 80)).crop(box)
    assert "100 x 80" in str(error.value)


def test_a_sliver_is_too_narrow():
    with pytest.raises(ZoomError, match="too narrow"):
        View(Image.new("RGB", (4000, 100)), (4000, 100)).crop((0, 0, 4000, 30))


def test_boxes_are_scaled_above_the_pixel_cap():
    """8,000 px image under Qwen's cap of 12.8 million pixels: the released code cropped the original
    unscaled."""
    image = Image.new("RGB", (8000, 4000))
    image.paste((255, 0, 0), (6000, 3000, 6400, 3200))
    view = View(image, fit(image.size, 16384 * 28 * 28))
    assert view.shown != image.size
    sx, sy = view.shown[0] / 8000, view.shown[1] / 4000
    crop, box = view.crop((6000 * sx, 3000 * sy, 6400 * sx, 3200 * sy))
    assert box == (6000, 3000, 6400, 3200) and crop.getcolors() == [(400 * 200, (255, 0, 0))]


SIZES = st.tuples(st.integers(28, 3000), st.integers(28, 3000))


@settings(deadline=None)
@given(SIZES, st.integers(56 * 56, 10**6), st.lists(st.floats(-50, 1100), min_size=4, max_size=4))
def test_a_crop_is_what_the_box_says(size, budget, box):
    """Clamped to the image, covering the scaled box, never more than a pixel larger."""
    view = View(Image.new("L", size), fit(size, budget))
    try:
        crop, (x1, y1, x2, y2) = view.crop(tuple(box))
    except ZoomError:
        return
    assert 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1] and crop.size == (x2 - x1, y2 - y1)
    left, top, right, bottom = view.to_original(tuple(box))
    for got, wanted, most in (
        (x1, left, size[0]),
        (y1, top, size[1]),
        (x2, right, size[0]),
        (y2, bottom, size[1]),
    ):
        assert abs(got - min(max(wanted, 0), most)) <= 1 + 1e-3


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.one_of(st.integers(56 * 56, 4 * 56 * 56), st.integers(56 * 56, 3 * 10**5)),
)
@example((300, 100), 56 * 56)  # rounded down to 84 x 28, which the processor would enlarge
def test_what_fits_is_left_alone_by_the_image_processor(size, budget):
    """The rollout resizes once; the processor must then see exactly the grid that was promised."""
    shown = fit(size, budget)
    grid = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=10**8)([Image.new("RGB", shown)])[
        "image_grid_thw"
    ][0]
    assert (grid[2] * 14, grid[1] * 14) == shown and shown[0] % 28 == shown[1] % 28 == 0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>A</answer>", "A"),
        ("<answer> </answer>", None),
        ("<answer>A</answer><answer></answer>", "A"),
        ("<answer>A</answer><answer>B</answer>", "B"),
        ("</answer>A<answer>", None),
        ("no", None),
        ("<answer>a\nb</answer>", "a\nb"),
        (r"\boxed{3}", None),
    ],
)
def test_answers(text, answer):
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> none", None),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        ("<answer>3</answer>", None),
        (r"\boxed{1", None),
        (r"\boxed{}", None),
        ("none", None),
    ],
)
def test_boxed_answers(text, answer):
    assert find_answer(text, boxed=True) == answer


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_prompt_is_what_the_chat_template_writes(family):
    """Our literal ChatML against the families' templates that TRL ships."""
    import jinja2
    import trl

    template = (Path(trl.__path__[0]) / f"chat_templates/{family}.jinja").read_text()
    messages = [
        {"role": "system", "content": tools.TOOL_SYSTEM},
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "\nWhat?" + tools.TOOL_SUFFIX},
            ],
        },
    ]
    rendered = (
        jinja2.Environment().from_string(template).render(messages=messages, add_generation_prompt=True)
    )
    assert rendered == tools.prompt("What?")


def test_no_system_block_in_observations():
    for text in (tools.observation(), tools.observation("x")):
        assert (
            "system" not in text
            and text.startswith("\n<|im_start|>user\n")
            and text.endswith("<|im_start|>assistant\n")
        )


def test_a_family_with_relative_boxes_needs_its_frame_alone():
    """The same region, asked for in shown pixels and in thousandths, is the same crop."""
    image = Image.effect_noise((1600, 900), 60).convert("RGB")
    absolute, relative = (
        View(image, (840, 476)),
        View(image, (840, 476), frame=(1000, 1000)),
    )
    one, box = absolute.crop((210, 119, 420, 238))
    other, same = relative.crop((250, 250, 500, 500))
    assert box == same == (400.0, 225.0, 800.0, 450.0) and one.tobytes() == other.tobytes()
    with pytest.raises(ZoomError, match="1000 x 1000"):
        relative.crop((1200, 10, 1300, 20))
