"""The toy world: large images in which a few small coloured tiles each carry one letter.

    image     1,008 x 1,008 px, redder to the right, bluer to the bottom: each position has its own colour
    tiles     two to four, about 100 px, jittered on a 4 x 4 grid, each of another colour, among grey clutter
    letter    about 38 px: plain to see in a close-up, illegible in a first look of 112 px, where it has 4 px

Kinds of questions, named in `meta["kind"]`: `read` needs one zoom, `compare` two (or one that holds both
tiles), `glance` none. `toy-mixture` adds `legible` (a letter so large that the first look shows it),
`mislabelled` (a wrong gold answer) and `blank` (tiles without letters): rows that a good data selection must
drop. Everything is drawn from a seed, when it is needed.
"""

import random
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from grading.boxes import Box
from toy.variants import read_variant

SIZE = 1008  # px; nine times the 112 px of the default first look
CELL = SIZE // 4
LETTERS = "ACHLOTXZ"
COLOURS = {
    "red": (225, 30, 40),
    "green": (30, 190, 60),
    "blue": (40, 70, 235),
    "yellow": (245, 225, 50),
    "cyan": (60, 235, 240),
    "black": (20, 20, 25),
}
KINDS = {"read": 0.5, "compare": 0.3, "glance": 0.2}
MIXTURE = KINDS | {"legible": 0.25, "mislabelled": 0.15, "blank": 0.15}


@dataclass(frozen=True)
class Tile:
    colour: str
    letter: str  # "" on a blank tile
    box: Box  # original pixels
    letter_px: int

    def glyph(self) -> Box:
        """The square around the letter, original pixels."""
        x, y = self.middle()
        half = self.letter_px / 2
        return x - half, y - half, x + half, y + half

    def middle(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Scene:
    tiles: tuple[Tile, ...]
    seed: int  # of the clutter and the light


@lru_cache(None)
def font(px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=px)  # reads a font file at every call, hence the cache


@lru_cache(8)
def background(tint: int) -> Image.Image:
    ramp = np.linspace(20, 235, SIZE, dtype=np.float32)
    light, sky = np.meshgrid(ramp, ramp)  # red grows to the right, blue towards the bottom
    colours = np.stack([light, np.full_like(light, 100 + tint), sky], -1)
    return Image.fromarray(colours.astype(np.uint8))


def render(scene: Scene, region: tuple[int, int, int, int] = (0, 0, SIZE, SIZE)) -> Image.Image:
    """Draw a scene, or a region of it, at full resolution; the same scene gives the same pixels."""
    rng = random.Random(scene.seed)
    image = background(rng.choice((-21, -14, -7, 0, 7, 14, 21))).crop(region)
    draw = ImageDraw.Draw(image)
    left, top = region[:2]
    for _ in range(rng.randint(6, 12)):  # grey clutter under the tiles
        x = rng.randrange(SIZE) - left
        y = rng.randrange(SIZE) - top
        width = rng.randint(15, 75)
        height = rng.randint(15, 75)
        shape = rng.choice((draw.rectangle, draw.ellipse))
        shape([x, y, x + width, y + height], fill=(rng.randint(60, 180),) * 3)
    for tile in scene.tiles:
        draw_tile(draw, tile, left, top)
    return image


def draw_tile(draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    """Draw a tile into a region that starts at (left, top), its letter in black or white."""
    x1, y1, x2, y2 = tile.box
    colour = COLOURS[tile.colour]
    red, green, blue = colour
    light = 0.3 * red + 0.6 * green + 0.1 * blue
    ink = (0, 0, 0) if light > 120 else (255, 255, 255)
    draw.rectangle((x1 - left, y1 - top, x2 - left, y2 - top), fill=colour)
    x, y = tile.middle()
    draw.text((x - left, y - top), tile.letter, ink, font(tile.letter_px), anchor="mm")


def random_scene(
    rng: random.Random,
    tiles: int | None = None,
    letter_px: tuple[int, int] = (36, 40),
    side: tuple[int, int] = (92, 108),
) -> Scene:
    """Two to four tiles of different colours, each in a grid cell of its own."""
    tiles = tiles or rng.randint(2, 4)
    placed = []
    colours = rng.sample(list(COLOURS), tiles)
    cells = rng.sample(range(16), tiles)
    for colour, cell in zip(colours, cells):
        row, column = divmod(cell, 4)
        half = rng.randint(*side) / 2
        jitter = min(45, CELL / 2 - half - 4)
        x = (column + 0.5) * CELL + rng.uniform(-jitter, jitter)
        y = (row + 0.5) * CELL + rng.uniform(-jitter, jitter)
        corners = (x - half, y - half, x + half, y + half)
        box = tuple(float(round(v)) for v in corners)
        letter = rng.choice(LETTERS)
        placed.append(Tile(colour, letter, box, rng.randint(*letter_px)))
    return Scene(tuple(placed), rng.getrandbits(32))


def read_question(colour: str) -> str:
    return f"What letter is on the {colour} tile?"


class Question(NamedTuple):
    """A question about a scene."""

    scene: Scene
    text: str
    answer: str  # gold
    targets: tuple[Tile, ...]  # what has to be looked at


def draw_question(rng: random.Random, kind: str, tiles=None, **look) -> Question:
    """A scene with a question of this kind. tiles: least and most; look: of `random_scene`."""
    if kind == "legible":
        look = {
            "letter_px": (190, 210),
            "side": (225, 235),
        }
    if tiles:
        tiles = rng.randint(*tiles)
    scene = random_scene(rng, tiles, **look)
    first, second = rng.sample(scene.tiles, 2)
    if kind == "compare":
        return compare_question(rng, scene, first, second)
    if kind == "glance":
        return glance_question(rng, scene)
    answer = first.letter
    if kind == "mislabelled":
        answer = rng.choice(LETTERS.replace(answer, ""))
    if kind == "blank":
        tiles = tuple(replace(tile, letter="") for tile in scene.tiles)
        scene = Scene(tiles, scene.seed)
    return Question(scene, read_question(first.colour), answer, (first,))


def compare_question(rng: random.Random, scene: Scene, first: Tile, second: Tile) -> Question:
    """Do two tiles show the same letter? In half of the questions they do."""
    same = rng.random() < 0.5
    others = LETTERS.replace(first.letter, "")
    letter = first.letter if same else rng.choice(others)
    twin = replace(second, letter=letter)
    tiles = tuple(twin if tile is second else tile for tile in scene.tiles)
    text = f"Do the {first.colour} tile and the {second.colour} tile show the same letter?"
    return Question(Scene(tiles, scene.seed), text, "yes" if same else "no", (first, twin))


def glance_question(rng: random.Random, scene: Scene) -> Question:
    """A question that the first look answers."""
    tile = rng.choice(scene.tiles)
    x, y = tile.middle()  # never near the image's middle: tiles stay in their grid cells
    if rng.random() < 0.5:
        text = f"Is the {tile.colour} tile on the left or on the right?"
        answer = "left" if x < SIZE / 2 else "right"
    else:
        text = f"Is the {tile.colour} tile at the top or at the bottom?"
        answer = "top" if y < SIZE / 2 else "bottom"
    return Question(scene, text, answer, (tile,))


def draw_questions(
    n: int, *, seed: int = 0, split: str = "train", mixture: bool = False, variant: str = ""
) -> list[dict]:
    """n questions as fields of a `Sample`, kinds drawn by the weights of `KINDS` (or `MIXTURE`).

    Their images are drawn when they are opened. variant: see toy/variants.py.
    """
    weights = MIXTURE if mixture else KINDS
    source = "toy-mixture" if mixture else "toy"
    scene = {}
    if variant:
        weights, scene = read_variant(variant, weights)
        source += ":" + variant
    rows = []
    for i in range(n):
        name = f"{source}-{split}-{seed}-{i}"
        rng = random.Random(name)  # the split is part of the seed: train and test share no image
        kind = rng.choices(list(weights), list(weights.values()))[0]
        question = draw_question(rng, kind, **scene)
        asked = [tile.box for tile in question.targets]
        others = [t for t in question.scene.tiles if t.letter and t.box not in asked]
        meta = {
            "kind": kind,
            "glyphs": tuple(tile.glyph() for tile in question.targets),
            "others": tuple(sorted((tile.box, tile.letter) for tile in others)),
        }
        rows.append(
            {
                "id": name,
                "image": partial(render, question.scene),
                "question": question.text,
                "answer": question.answer,
                "boxes": tuple(tile.box for tile in question.targets),
                "meta": meta,
            }
        )
    return rows
