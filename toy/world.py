"""The toy world: large pictures in which a few small coloured tiles each carry one letter.

    picture   1,008 x 1,008 px, light from the left and a graded sky: every place has a colour of its own
    tiles     two to four, about 100 px, jittered on a 4 x 4 grid, each of another colour, among grey clutter
    letter    about 38 px: plain to see in a close-up, gone in a first look of 112 px, where it is 4 px high

Kinds of questions, named in `meta["kind"]`: `read` needs one zoom, `compare` two (or one that holds both
tiles), `glance` none. `toy-mixture` adds `legible` (a letter so large that the first look shows it),
`mislabelled` (a wrong gold answer) and `blank` (tiles without letters), the rows that a good data selection
must find. Everything is drawn from a seed, when it is needed.
"""

import random
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # x1, y1, x2, y2

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
        x = (self.box[0] + self.box[2]) / 2
        y = (self.box[1] + self.box[3]) / 2
        half = self.letter_px / 2
        return x - half, y - half, x + half, y + half


@dataclass(frozen=True)
class Scene:
    tiles: tuple[Tile, ...]
    seed: int  # of the clutter and the light

    def tile(self, colour: str) -> Tile:
        return next(tile for tile in self.tiles if tile.colour == colour)


@lru_cache(None)
def font(px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=px)  # reads a font file at every call, hence the cache


@lru_cache(8)
def background(tint: int) -> Image.Image:
    ramp = np.linspace(20, 235, SIZE, dtype=np.float32)
    light, sky = np.meshgrid(ramp, ramp)  # red grows to the right, blue towards the bottom
    return Image.fromarray(
        np.stack([light, np.full_like(light, 100 + tint), sky], -1).astype(np.uint8)
    )


def render(scene: Scene, region: tuple[int, int, int, int] = (0, 0, SIZE, SIZE)) -> Image.Image:
    """Draw a scene, or a region of it, at full resolution; the same scene gives the same pixels."""
    rng = random.Random(scene.seed)
    picture = background(rng.choice((-21, -14, -7, 0, 7, 14, 21))).crop(region)
    draw = ImageDraw.Draw(picture)
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
    return picture


def draw_tile(draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    """Draw a tile into a region that starts at (left, top), its letter in black or white."""
    x1, y1, x2, y2 = tile.box
    red, green, blue = COLOURS[tile.colour]
    ink = (0, 0, 0) if 0.3 * red + 0.6 * green + 0.1 * blue > 120 else (255, 255, 255)
    draw.rectangle((x1 - left, y1 - top, x2 - left, y2 - top), fill=(red, green, blue))
    middle = ((x1 + x2) / 2 - left, (y1 + y2) / 2 - top)
    draw.text(middle, tile.letter, ink, font(tile.letter_px), anchor="mm")


def random_scene(
    rng: random.Random,
    tiles: int | None = None,
    letter_px: tuple[int, int] = (36, 40),
    side: tuple[int, int] = (92, 108),
) -> Scene:
    """Two to four tiles of different colours, each in a grid cell of its own."""
    tiles = tiles or rng.randint(2, 4)
    placed = []
    for colour, cell in zip(rng.sample(list(COLOURS), tiles), rng.sample(range(16), tiles)):
        half = rng.randint(*side) / 2
        jitter = min(45, CELL / 2 - half - 4)
        x = cell % 4 * CELL + CELL / 2 + rng.uniform(-jitter, jitter)
        y = cell // 4 * CELL + CELL / 2 + rng.uniform(-jitter, jitter)
        box = tuple(float(round(v)) for v in (x - half, y - half, x + half, y + half))
        placed.append(Tile(colour, rng.choice(LETTERS), box, rng.randint(*letter_px)))
    return Scene(tuple(placed), rng.getrandbits(32))


def read_question(colour: str) -> str:
    return f"What letter is on the {colour} tile?"


def glance_question(rng: random.Random, scene: Scene) -> tuple[str, str, tuple[Tile, ...]]:
    """A question that the first look answers: question, gold answer, target tiles."""
    tile = rng.choice(scene.tiles)
    x1, y1, x2, y2 = tile.box  # never near the middle of the picture: see the grid
    if rng.random() < 0.5:
        side = "left" if (x1 + x2) / 2 < SIZE / 2 else "right"
        return f"Is the {tile.colour} tile on the left or on the right?", side, (tile,)
    side = "top" if (y1 + y2) / 2 < SIZE / 2 else "bottom"
    return f"Is the {tile.colour} tile at the top or at the bottom?", side, (tile,)


def draw_question(rng: random.Random, kind: str) -> tuple[Scene, str, str, tuple[Tile, ...]]:
    """A scene with a question of this kind: scene, question, gold answer, target tiles."""
    if kind == "legible":
        scene = random_scene(rng, letter_px=(190, 210), side=(225, 235))
    else:
        scene = random_scene(rng)
    first, second = rng.sample(scene.tiles, 2)
    if kind == "blank":
        blank = tuple(Tile(t.colour, "", t.box, t.letter_px) for t in scene.tiles)
        return Scene(blank, scene.seed), read_question(first.colour), first.letter, (first,)
    if kind == "mislabelled":
        wrong = rng.choice([letter for letter in LETTERS if letter != first.letter])
        return scene, read_question(first.colour), wrong, (first,)
    if kind in ("read", "legible"):
        return scene, read_question(first.colour), first.letter, (first,)
    if kind == "compare":
        return compare_question(rng, scene, first, second)
    assert kind == "glance", kind
    return scene, *glance_question(rng, scene)


def compare_question(rng: random.Random, scene: Scene, first: Tile, second: Tile):
    """Do two tiles show the same letter? In half of the questions they are made to."""
    others = [letter for letter in LETTERS if letter != first.letter]
    letter = first.letter if rng.random() < 0.5 else rng.choice(others)
    twin = Tile(second.colour, letter, second.box, second.letter_px)
    tiles = tuple(twin if tile is second else tile for tile in scene.tiles)
    question = f"Do the {first.colour} tile and the {second.colour} tile show the same letter?"
    answer = "yes" if letter == first.letter else "no"
    return Scene(tiles, scene.seed), question, answer, (first, twin)


def draw_questions(
    n: int, *, seed: int = 0, split: str = "train", mixture: bool = False
) -> list[dict]:
    """n questions as fields of a `Sample`, kinds drawn by the weights of `KINDS` (or `MIXTURE`).

    Their pictures are drawn when they are opened.
    """
    weights = MIXTURE if mixture else KINDS
    source = "toy-mixture" if mixture else "toy"
    rows = []
    for i in range(n):
        name = f"{source}-{split}-{seed}-{i}"
        rng = random.Random(
            name
        )  # the split is part of the seed: train and test share no picture
        kind = rng.choices(list(weights), list(weights.values()))[0]
        scene, question, answer, targets = draw_question(rng, kind)
        row = {
            "id": name,
            "image": partial(render, scene),
            "question": question,
            "answer": answer,
        }
        row["boxes"] = tuple(tile.box for tile in targets)
        row["meta"] = {"kind": kind, "glyphs": tuple(tile.glyph() for tile in targets)}
        rows.append(row)
    return rows
