"""The tools by their names in `--tools`: the zoom, and one with which the paper asks a model that has never
trained with it (Table 8).

A third one is a schema, a function, and a line in `TOOLBOX`. The function gets the `View` (the original
image, the frame of the model's boxes) and the arguments as the model wrote them, and returns an image and
the region that it shows, or None; it raises ZoomError with a text for the model.
"""

from PIL import Image, ImageOps

from tools import MAX_NUMBER, ZOOM, Tool, View, ZoomError

GREY = (128, 128, 128)
MOST_SIDE = 4096  # px of what is rotated: it is shown much smaller
ROTATE_SCHEMA = {
    "type": "function",
    "function": {
        "name": "image_rotate_tool",
        "description": "Rotate the picture: shows all of it, turned counter-clockwise.",
        "parameters": {
            "type": "object",
            "properties": {
                "angle": {
                    "type": "number",
                    "description": "Degrees counter-clockwise, of the picture as it was first shown. Boxes "
                    "in later calls refer to the picture as it was first shown, too.",
                },
            },
            "required": ["angle"],
        },
    },
}
QUARTERS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def image_rotate_tool(view: View, arguments: dict) -> tuple[Image.Image, None]:
    """All of the original image, rotated. Raises ZoomError.

    >>> view = View(Image.new("RGB", (200, 100)), (112, 56))
    >>> image, region = image_rotate_tool(view, {"angle": -90})
    >>> image.size, region
    ((100, 200), None)
    """
    if "angle" not in arguments:
        raise ZoomError('the argument "angle" is missing.')
    angle = arguments["angle"]
    if isinstance(angle, bool) or not isinstance(angle, int | float):
        raise ZoomError('"angle" must be a number of degrees.')
    if not -MAX_NUMBER <= angle <= MAX_NUMBER:  # false for what is no number, too
        raise ZoomError(f'"angle" must be a number of degrees, of at most {MAX_NUMBER:.0f}.')
    image = view.original
    if max(image.size) > MOST_SIDE:
        image = ImageOps.contain(image, (MOST_SIDE, MOST_SIDE))
    return rotated(image, angle % 360), None


def rotated(image: Image.Image, angle: float) -> Image.Image:
    """The whole image, counter-clockwise; quarter turns to the pixel, others on grey."""
    if angle == 0:
        return image
    if angle in QUARTERS:
        return image.transpose(QUARTERS[angle])
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=GREY)


TOOLBOX = {
    "zoom": ZOOM,
    "rotate": Tool(ROTATE_SCHEMA, image_rotate_tool),
}


def named(names: str) -> tuple[Tool, ...]:
    """The tools of a --tools. Raises ValueError.

    >>> [tool.name for tool in named("zoom,rotate")]
    ['image_zoom_in_tool', 'image_rotate_tool']
    """
    words = names.split(",")
    if unknown := set(words) - set(TOOLBOX):
        known = ", ".join(TOOLBOX)
        raise ValueError(f"unknown tool {', '.join(sorted(unknown))}; there are {known}")
    if words[0] != "zoom" or len(set(words)) < len(words):
        raise ValueError(f"tools are the zoom and others, such as zoom,rotate, not {names}")
    return tuple(TOOLBOX[word] for word in words)
