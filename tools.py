"""The zoom tool: what the model is told about it, how its calls are read, and where its boxes point.

Two frames of pixels meet here, and mixing them up is the classic bug of this method:

    shown     the first look: the image as the model saw it, resized to its pixel budget. Boxes in calls
              are in this frame.
    original  the image on disk. Crops are cut from it, so that a zoom brings detail that the first look
              did not have.

The wire format follows DeepEyes (arXiv 2505.14362, appendix A; github.com/Visual-Agent/DeepEyes), in our
own words, with `required: ["bbox_2d"]` where the released prompt said `["bbox"]`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from grading.boxes import Box

# How boxes are asked for: in pixels, or as families do whose boxes are in the frame `RELATIVE`.
BOX = "[x1, y1, x2, y2] in pixels of the picture"
RELATIVE = (1000, 1000)
RELATIVE_BOX = "[x1, y1, x2, y2], each from 0 to 1000 relative to the picture's width or height"
TOOL = "image_zoom_in_tool"
SCHEMA = {
    "type": "function",
    "function": {
        "name": TOOL,
        "description": "Zoom in on one region of the picture: "
        "crops it by a bounding box, at full resolution.",
        "parameters": {
            "type": "object",
            "properties": {
                "bbox_2d": {
                    "type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4,
                    "description": f"The region as {BOX}: "
                    "(x1, y1) is its top-left corner, (x2, y2) its bottom-right corner.",
                },
                "label": {"type": "string", "description": "What the region shows (optional)."},
            },
            "required": ["bbox_2d"],
        },
    },
}  # fmt: skip
PLAIN_SYSTEM = "You are a helpful assistant."


def system_text(schemas: list[dict]) -> str:
    """The system prompt that offers these tools."""
    signatures = "\n".join(map(json.dumps, schemas))
    return f"""{PLAIN_SYSTEM}

# Tools
You may call one or more functions to help with the user's question.
The function signatures are given within <tools></tools> tags:
<tools>
{signatures}
</tools>

# How to call a tool
Return a JSON object with the function name and its arguments within <tool_call></tool_call> tags:
<tool_call>{{"name": <function-name>, "arguments": <args-json-object>}}</tool_call>

**Example**:
<tool_call>{{"name": "{TOOL}", \
"arguments": {{"bbox_2d": [10, 20, 100, 200], "label": "the apple on the desk"}}}}</tool_call>"""


def suffix_text(schemas: list[dict]) -> str:
    """What stands after the question, and after each crop."""
    names = " or ".join(f"**{schema['function']['name']}**" for schema in schemas)
    return (
        f"\nThink first, call {names} if needed, then answer. Use strictly this format: "
        "<think>...</think> <tool_call>...</tool_call> (if a tool is needed) <answer>...</answer>"
    )


TOOL_SYSTEM = system_text([SCHEMA])
TOOL_SUFFIX = suffix_text([SCHEMA])
WITHOUT_TOOL = "\nThink first, then answer. Use strictly this format: <think>...</think> "
PLAIN_SUFFIX = WITHOUT_TOOL + "<answer>...</answer>"
BOXED_SUFFIX = WITHOUT_TOOL + "and then the final answer in \\boxed{}."
# Written for the model to force a call: all of it up to the numbers of the box.
CALL_OPENING = f'<tool_call>{{"name": "{TOOL}", "arguments": {{"bbox_2d": ['

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"  # the rollout repeats the pad once per visual token
TURN_ENDS = ("<|im_end|>", "<|endoftext|>", "</tool_call>")
# Ids of these are never sampled: a model that writes an image pad breaks the match of pads and images.
BANNED_NAMES = "im_start vision_start vision_end vision_pad image_pad video_pad"
BANNED = tuple(f"<|{name}|>" for name in BANNED_NAMES.split())

MIN_SIDE = 28  # original pixels; a thinner crop would be blown up to fill one visual token
MAX_ASPECT = 100  # the paper's limit; the image processor itself fails above 200
MAX_CALL_CHARS = 2000
MAX_NUMBER = 1e6  # no image is this wide


class ZoomError(ValueError):
    """A call that can't be carried out. Its text is shown to the model, so it says the rule and the
    image's size.

    It never quotes what the model wrote: a quoted "<|image_pad|>", spelled out in letters, would turn into
    a real image token when the message is tokenised.
    """


def user_turn(text: str) -> str:
    return f"<|im_start|>user\n{IMAGE}\n{text}<|im_end|>\n<|im_start|>assistant\n"


def prompt(question: str, *, tool: bool = True, boxed: bool = False, wording=None, schemas=(SCHEMA,)) -> str:
    """The whole first prompt as text, with one `IMAGE` for the first look.

    tool: offer the tools of these schemas. boxed: ask for `\\boxed{}` instead of `<answer>` (the ThinkLite
    rows of the paper). wording: what stands in place of our words, for a model trained with others: its
    system prompt, and the user's text with "{question}" in it.

    >>> prompt("What is it?", tool=False).count("<|image_pad|>")
    1
    """
    suffix = BOXED_SUFFIX if boxed else PLAIN_SUFFIX
    system = PLAIN_SYSTEM
    if tool:
        suffix = suffix_text(schemas)
        system = system_text(schemas)
    text = "{question}" + suffix
    if wording:
        system, text = wording
    asked = user_turn(text.replace("{question}", question))
    return f"<|im_start|>system\n{system}<|im_end|>\n{asked}"


def observation(error: str | None = None, wording=None, schemas=(SCHEMA,)) -> str:
    """The turn that answers a call: the crop within `<tool_response>` and the format again, or a plain error.

    A *user* turn, as in the paper: chat templates drop images in a `tool` role. It starts after
    `<|im_end|>`.

    >>> observation("no such region")
    '\\n<|im_start|>user\\nError: no such region<|im_end|>\\n<|im_start|>assistant\\n'
    """
    _, text = wording or ("", "{question}" + suffix_text(schemas))
    suffix = text.partition("{question}")[2]
    body = f"Error: {error}" if error else f"<tool_response>{IMAGE}{suffix}</tool_response>"
    return f"\n<|im_start|>user\n{body}<|im_end|>\n<|im_start|>assistant\n"


def find_call(text: str) -> str | None:
    """What stands inside the LAST `<tool_call>...</tool_call>` of a turn, or None if there is no such pair.

    >>> find_call("<tool_call>a</tool_call> no, <tool_call>b</tool_call>")
    'b'
    """
    # Two scans, no regex: model text must not cost quadratic time.
    end = text.rfind("</tool_call>")
    start = text.rfind("<tool_call>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<tool_call>") : end]


def _reject_constant(name: str):
    # json.loads takes NaN and Infinity unless told otherwise.
    raise ValueError(f"{name} is not JSON")


def in_frame(text: str, frame: tuple[int, int]) -> str:
    """A prompt that asks for boxes in this frame.

    >>> in_frame(f"Where? As {BOX}.", RELATIVE)
    "Where? As [x1, y1, x2, y2], each from 0 to 1000 relative to the picture's width or height."
    """
    return text.replace(BOX, RELATIVE_BOX) if frame == RELATIVE else text


def unit(frame: tuple[int, int] | None) -> str:
    return "thousandths of the picture" if frame == RELATIVE else "pixels"


def size_note(frame: tuple[int, int] | None) -> str:
    if frame == RELATIVE:
        return " Coordinates run from 0 to 1000: any picture counts as 1000 x 1000."
    return f" The picture is {frame[0]} x {frame[1]} pixels." if frame else ""


def read_call(
    text: str, frame: tuple[int, int] | None = None, names: tuple[str, ...] = (TOOL,)
) -> tuple[str, dict]:
    """The name and the arguments of the last call of a turn. JSON only, never eval. Raises ZoomError.

    text: one turn of the model. frame: (width, height) of the frame of its boxes, named in the errors. names:
    of the tools on offer.

    >>> read_call('<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1]}}</tool_call>')
    ('image_zoom_in_tool', {'bbox_2d': [1]})
    """
    size = size_note(frame)
    inside = find_call(text)
    if inside is None:
        raise ZoomError(f"no <tool_call>...</tool_call> pair was found.{size}")
    if len(inside) > MAX_CALL_CHARS:
        raise ZoomError(f"a tool call may have at most {MAX_CALL_CHARS} characters.{size}")
    try:
        call = json.loads(inside, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise ZoomError(f"the tool call is not valid JSON.{size}") from None
    arguments = call.get("arguments") if isinstance(call, dict) else None
    if not isinstance(arguments, dict) or "name" not in call:
        raise ZoomError(f'a tool call must be a JSON object with "name" and "arguments".{size}')
    if call["name"] not in names:  # a tuple: what the model wrote may be a list
        known = " and ".join(names)
        only = "the tools are" if len(names) > 1 else "the only tool is"
        raise ZoomError(f"unknown tool name; {only} {known}.{size}")
    return call["name"], arguments


def read_box(arguments: dict, frame: tuple[int, int] | None = None) -> Box:
    """The box among the arguments of a call, exactly as the model wrote it: four finite numbers.

    Its place in the image is checked by `View.crop`. Raises ZoomError.

    >>> read_box({"bbox_2d": [1, 2, 30, 40.5]})
    (1.0, 2.0, 30.0, 40.5)
    """
    size = size_note(frame)
    if "bbox_2d" not in arguments:
        raise ZoomError(f'the argument "bbox_2d" is missing.{size}')
    box = arguments["bbox_2d"]
    if not isinstance(box, list) or len(box) != 4:
        raise ZoomError(f'"bbox_2d" must be a list of exactly 4 numbers [x1, y1, x2, y2].{size}')
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in box):
        raise ZoomError(f'every entry of "bbox_2d" must be a number.{size}')
    # 1e999 is JSON, and infinite.
    if any(isinstance(v, float) and not math.isfinite(v) for v in box):
        raise ZoomError(f'every number of "bbox_2d" must be finite.{size}')
    if any(abs(v) > MAX_NUMBER for v in box):
        far = f"far too large to be {unit(frame)}"
        raise ZoomError(f'the numbers of "bbox_2d" are {far}.{size}')
    return tuple(float(v) for v in box)


def parse_call(text: str, size: tuple[int, int] | None = None) -> Box:
    """The box of the last call of a turn, in pixels of the SHOWN frame.

    text: one turn of the model. size: (width, height) of the shown image, named in the errors. Raises
    ZoomError.

    >>> call = '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 30, 40.5]}}'
    >>> parse_call(f"Let me look. <tool_call>{call}</tool_call>")
    (1.0, 2.0, 30.0, 40.5)
    """
    _, arguments = read_call(text, size)
    return read_box(arguments, size)


@dataclass
class Call:
    """One call of the model, and what came of it: an image, or an error."""

    name: str = ""  # of the tool; empty if the call could not be read
    arguments: dict = field(default_factory=dict)  # as the model wrote them
    region: Box | None = None  # of a zoom: what the model asked for, clamped, ORIGINAL pixels
    # The crop, later resized as shown; a control arm replaces it.
    picture: Image.Image | None = None
    error: str | None = None  # what the model is told instead


def fit(size: tuple[int, int], max_pixels: int, min_pixels: int = 56 * 56, side: int = 28) -> tuple[int, int]:
    """The (width, height) at which an image of this size is shown, within the pixel budget.

    Both are multiples of `side`, the side in pixels of the square that one visual token covers. Qwen's own
    rule (`smart_resize`): it shrinks or enlarges only where the budget demands it. It fails on slivers, which
    are therefore squeezed to an aspect ratio of 100 first. A budget of under four times the least may be
    exceeded.

    >>> fit((1008, 1008), 112 * 112), fit((1600, 1200), 1280 * 28 * 28), fit((20, 20), 10**6)
    ((112, 112), (1148, 840), (56, 56))
    """
    width = min(size[0], MAX_ASPECT * size[1])
    height = min(size[1], MAX_ASPECT * size[0])
    height, width = smart_resize(height, width, side, min_pixels, max_pixels)
    # Rounded down to less than the least, it would be enlarged by the image processor, behind our back.
    if height * width < min_pixels:
        height, width = smart_resize(height, width, side, min_pixels, 4 * min_pixels)
    return width, height


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic, Qwen's own filter. A large reduction starts with a box filter: three times as fast."""
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


@dataclass
class View:
    """One original image, the size at which the model saw it, and the frame its boxes are in.

    For Qwen2.5-VL that frame is the shown image; for a family whose boxes run from 0 to 1,000, whatever the
    image, it is (1000, 1000).
    """

    original: Image.Image
    shown: tuple[int, int]  # (width, height) of the first look
    # (width, height) of the model's boxes; None: the shown image's.
    frame: tuple[int, int] | None = None

    def __post_init__(self):
        self.frame = self.frame or self.shown

    def look(self) -> Image.Image:
        """The first look: the whole image at its shown size."""
        return resize(self.original, self.shown)

    def to_original(self, box: Box) -> Box:
        """The model's frame -> original pixels; no rounding, no clamping.

        >>> View(Image.new("RGB", (1000, 500)), (100, 100)).to_original((10, 10, 50, 100))
        (100.0, 50.0, 500.0, 500.0)
        """
        sx = self.original.width / self.frame[0]
        sy = self.original.height / self.frame[1]
        return box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy

    def crop(self, box: Box) -> tuple[Image.Image, Box]:
        """Cut a box given in the model's frame out of the ORIGINAL image, clamped to it.

        Returns the crop at full resolution and its box in whole ORIGINAL pixels. Raises ZoomError.

        >>> crop, box = View(Image.new("RGB", (1000, 500)), (100, 50)).crop((90, 10, 120, 40))
        >>> crop.size, box
        ((100, 300), (900.0, 100.0, 1000.0, 400.0))
        """
        x1, y1, x2, y2 = box
        size = size_note(self.frame)
        if not all(math.isfinite(v) for v in box):
            raise ZoomError(f"every number of the box must be finite.{size}")
        if x1 > x2 or y1 > y2:
            raise ZoomError(f"the corners are swapped: x1 < x2 and y1 < y2 must hold.{size}")
        if x1 == x2 or y1 == y2:
            raise ZoomError(f"the box is empty: x1 < x2 and y1 < y2 must hold.{size}")
        if x1 >= self.frame[0] or y1 >= self.frame[1] or x2 <= 0 or y2 <= 0:
            raise ZoomError(f"the box lies outside the picture.{size}")
        left, top, right, bottom = self.to_original(box)
        # Rounded outwards, but 15 * (1000 / 30) comes out just above 500: hence the 1e-6.
        left = max(0, math.floor(left + 1e-6))
        top = max(0, math.floor(top + 1e-6))
        right = min(self.original.width, math.ceil(right - 1e-6))
        bottom = min(self.original.height, math.ceil(bottom - 1e-6))
        short, long = sorted((right - left, bottom - top))
        if short < MIN_SIDE:
            # Equal but for rounding, unless the frame has another shape than the image.
            scales = [new / old for new, old in zip(self.frame, self.original.size)]
            scale = max(scales) if self.frame == RELATIVE else min(scales)
            least = f"{math.ceil(MIN_SIDE * scale)} {unit(self.frame)}"
            raise ZoomError(f"the box is too thin: every side needs at least about {least}.{size}")
        if long > MAX_ASPECT * short:
            raise ZoomError(
                f"the box is too narrow: its long side may be at most {MAX_ASPECT} times the short.{size}"
            )
        region = (left, top, right, bottom)
        return self.original.crop(region), tuple(float(v) for v in region)


def image_zoom_in_tool(view: View, arguments: dict) -> tuple[Image.Image, Box]:
    """Carry out a call: the crop at full resolution, and its region in ORIGINAL pixels. Raises ZoomError."""
    return view.crop(read_box(arguments, view.frame))


@dataclass(frozen=True)
class Tool:
    """What a model may call: what it is told of it, and what carries a call out."""

    schema: dict
    # (View, arguments) -> the image at full resolution, and its region in ORIGINAL pixels, if it is one.
    use: Callable

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


ZOOM = Tool(SCHEMA, image_zoom_in_tool)


def carry_out(view: View, turn: str, offered: tuple[Tool, ...] = (ZOOM,)) -> Call:
    """What comes of the last call in a turn of the model: an image at full resolution, or an error."""
    call = Call()
    tools = {tool.name: tool for tool in offered}
    try:
        call.name, call.arguments = read_call(turn, view.frame, tuple(tools))
        call.picture, call.region = tools[call.name].use(view, call.arguments)
    except ZoomError as error:
        call.error = str(error)
    return call
