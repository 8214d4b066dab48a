"""Images as files hold them, and the RGB that a model sees: upright, on white, 8 bits a colour."""

import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Scans and panoramas have 200 megapixels; Pillow's own limit, for decompression bombs, is lower.
MOST_PIXELS = 300_000_000
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
# The usual formats. Pillow knows forty more, and starts Ghostscript for one of them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
OVERHANG = 0.02  # of an image's side: boxes that are rounded, or a pixel too long, are no fault


def open_image(source: str | Path | bytes) -> Image.Image:
    """The image in a file or in its bytes, not decoded yet. Raises ValueError or OSError for other files."""
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=FORMATS)
    if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait for ever
        raise ValueError(f"{source} is no regular file")
    return Image.open(source, formats=FORMATS)


def check_size(image: Image.Image) -> None:
    """Raise ValueError for an image too large to decode. Its size is known without decoding."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}")


def check_boxes(size: tuple[int, int], boxes) -> None:
    """Raise ValueError for a target box, in pixels of an image of this (width, height), that leaves it."""
    width, height = size
    for box in boxes:
        left, top, right, bottom = box
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            raise ValueError(f"the box {box} lies outside the {width} x {height} pixels")
        beyond_x = max(-left, right - width)
        beyond_y = max(-top, bottom - height)
        if beyond_x > OVERHANG * width or beyond_y > OVERHANG * height:
            raise ValueError(f"the box {box} leaves the {width} x {height} pixels: is its frame another one?")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB, upright (EXIF orientation applied).

    What is transparent becomes white, as in Qwen's own code; a plain conversion would make it black. Of
    16-bit and float images the darkest value becomes black, the brightest white; a plain conversion would
    clip them.

    >>> to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return stretched(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def stretched(image: Image.Image) -> Image.Image:
    """An image of 16 or 32 bits a pixel: what it holds, spread over 8 bits. Raises ValueError for NaN.

    >>> stretched(Image.fromarray(np.array([[0, 1000, 4000]], np.uint16))).getpixel((1, 0))
    (64, 64, 64)
    """
    values = np.asarray(image, np.float64)  # (height, width)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    low = values.min()
    high = values.max()
    if low == high:  # one tone: the smallest usual depth that holds it
        low = min(0, low)
        high = next((most for most in (1, 2**8 - 1, 2**12 - 1, 2**16 - 1) if high <= most), high)
    grey = np.round((values - low) * (255 / (high - low)))
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
