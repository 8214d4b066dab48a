"""The lessons of the tiny base, drawn from the toy's world: what each shows, and what of it is learned.

A lesson is a conversation in parts of (text, weight), with an image for each `tools.IMAGE`. Weight 0 is
context, not learned; the tokens that carry the information weigh most.

    read      name the letter in a close-up
    pair      the same, when the close-up is the second image of a conversation
    name      name the colours of the tiles, left to right; without it, pointing mixes them up
    ground    give the box of a named tile in a first look, say on which side it is, or zoom in when told to
    reason    text alone: two letters have been read, are they the same?
    large     read a letter that the first look shows
    direct    answer at first sight, where small letters are illegible and have to be guessed
    call      call the tool with a clumsy box, be shown a close-up of another scene, and answer
"""

import math
import random
from typing import NamedTuple

from PIL import Image

import tools
from toy.world import (
    COLOURS,
    LETTERS,
    SIZE,
    Question,
    Scene,
    Tile,
    draw_question,
    glance_question,
    random_scene,
    read_question,
    render,
)

LOOK = 112  # px, side of the first look
CROP_PIXELS = 134 * 134  # a square close-up is shown at 112 x 112, a flat one at 140 x 112
END = "<|im_end|>"
# What is asked in answers and calls: "sized" is `read` with letters of every size.
ANSWERED = {"read": 0.2, "compare": 0.25, "glance": 0.15, "sized": 0.4}
# How often such a question is shown with a call: for "sized" as often for each size, so that RL has to find
# out which of them need one.
HABIT = {"read": 0.5, "compare": 0.7, "glance": 0.5, "sized": 0.35}
EVERY_SIZE = (36, 210)  # px
LEGIBLE = 140  # px; a letter from here on is read in a first look, where it is 16 px high
LARGE = 190
CALL = 0.4  # the weight of deciding for a call, against 2 for an answer: the habit stays weak
GUESS = 0.3  # an answer that can't be seen from the image: learn the form, not the luck


class Shown(NamedTuple):
    image: Image.Image
    scene: int  # the seed of the scene that it shows


class Lesson(NamedTuple):
    skill: str
    parts: list[tuple[str, float]]
    shown: list[Shown]


def draw_lesson(skill: str, rng: random.Random, ease: float, tiles: int) -> Lesson:
    """ease: 1 for huge letters in close-ups, 0 for the world's own. tiles: the most in a first look."""
    if skill == "read":
        return lesson_read(rng, ease)
    if skill == "name":
        return lesson_name(rng, tiles)
    if skill == "reason":
        return lesson_reason(rng)
    if skill == "answer":
        return lesson_answer(rng)
    if skill == "large":
        return lesson_large(rng)
    return lesson_ground(rng, ease, tiles, skill)


# --------------------------------------------------------------------------------------------------
# Images.


def look(scene: Scene) -> Shown:
    image = tools.View(render(scene), (LOOK, LOOK)).look()
    return Shown(image, scene.seed)


def close_up(rng: random.Random, scene: Scene, tile: Tile, ease: float) -> Shown:
    """The surroundings of one tile, its whole letter inside, in any framing, at the size at which a crop is
    shown."""
    widest, letter_px = framing(rng, ease)
    scene = Scene(tuple(with_letter(t, letter_px) for t in scene.tiles), scene.seed)
    side = rng.uniform(max(90, letter_px + 10), max(widest, 1.5 * letter_px))
    stretch = rng.uniform(-0.25, 0.25)
    width = side * math.exp(stretch)
    height = side * math.exp(-stretch)
    slack_x = max(0, width / 2 - letter_px / 2 - 6)
    slack_y = max(0, height / 2 - letter_px / 2 - 6)
    x, y = tile.middle()
    x += rng.uniform(-slack_x, slack_x)
    y += rng.uniform(-slack_y, slack_y)
    left = max(0, x - width / 2)
    top = max(0, y - height / 2)
    right = min(SIZE, x + width / 2)
    bottom = min(SIZE, y + height / 2)
    crop = render(scene, (round(left), round(top), round(right), round(bottom)))
    image = tools.resize(crop, tools.fit(crop.size, CROP_PIXELS))
    return Shown(image, scene.seed)


def framing(rng: random.Random, ease: float) -> tuple[int, int]:
    """(widest side of a close-up, letter height), original px: of the world's own letters, with some of every
    size among them, and larger ones the higher the ease."""
    if ease == 0 and rng.random() < 0.3:
        return 300, rng.randint(*EVERY_SIZE)
    own = rng.random() > max(ease, 0.15)
    letter = rng.randint(36, 40) if own else rng.randint(round(40 + 35 * ease), 80)
    return round(300 - 150 * ease), letter


def with_letter(tile: Tile, letter_px: int) -> Tile:
    """The tile with its letter of this height; it grows where the letter needs it."""
    x, y = tile.middle()
    half = max(tile.box[2] - tile.box[0], 1.15 * letter_px) / 2
    box = tile.box if letter_px <= 80 else (x - half, y - half, x + half, y + half)
    return Tile(tile.colour, tile.letter, box, letter_px)


# --------------------------------------------------------------------------------------------------
# Parts.


def box_parts(box, weight: float = 1.0) -> list:
    """`{"bbox_2d": [..]}`. The first digit decides which tile it is, and weighs most."""
    parts = [('{"bbox_2d": [', weight)]
    for i, value in enumerate(box):
        digits = str(round(value))
        lead, rest = ((10, 1), (4, 1), (1, 0.5), (1, 0.5))[i]
        parts.append(("," if i else "", 0.3))
        parts.append((digits[0], weight * lead))
        parts.append((digits[1:], weight * rest))
    return [*parts, ("]}", 0.3)]


def call_parts(box, decision: float) -> list:
    """A call with this box; decision: the weight of deciding for a call at all."""
    parts = [("<tool_call>", decision), (f'{{"name": "{tools.TOOL}", "arguments": ', 1)]
    return [*parts, *box_parts(box, 0.5), ("}</tool_call>", 1)]


def read_parts(tile: Tile) -> list:
    """The letter is read in the thought; the answer only repeats it."""
    return [
        (f"<think> {tile.colour}", 1),
        ("=", 1),
        (tile.letter, 8),
        ("</think><answer>", 1),
        (tile.letter, 1),
        ("</answer>" + END, 1),
    ]


def answer_parts(thought: str, answer: str, weight: float) -> list:
    return [
        (f"<think>{thought}</think>", 1),
        ("<answer>", 2),
        (answer, weight),
        ("</answer>" + END, 1),
    ]


def letter_parts(seen: list[str], weight: float) -> list:
    """What has been read, `" red=C"` each; weight: of the letters."""
    parts = []
    for each in seen:
        parts.append((each[:-1], 1))
        parts.append((each[-1], weight))
    return parts


def shown_box(tile: Tile) -> list[float]:
    """In pixels of the first look."""
    return [v * LOOK / SIZE for v in tile.box]


def loose_box(rng: random.Random, tile: Tile) -> list[float]:
    """The clumsy box of a call, pixels of the first look: around the tile in six cases of seven, anywhere
    else, and too wide."""
    width = rng.uniform(14, 40)
    height = rng.uniform(14, 40)
    if rng.random() < 0.15:
        x = rng.uniform(0, LOOK - width)
        y = rng.uniform(0, LOOK - height)
    else:
        left, top, right, bottom = shown_box(tile)
        x = (left + right - width) / 2 + rng.gauss(0, 6)
        y = (top + bottom - height) / 2 + rng.gauss(0, 6)
    x = min(max(0, x), LOOK - width)
    y = min(max(0, y), LOOK - height)
    return [x, y, x + width, y + height]


def colours_in(question: str) -> list[str]:
    return sorted((colour for colour in COLOURS if colour in question), key=question.index)


def tile_of(scene: Scene, colour: str) -> Tile:
    return next(tile for tile in scene.tiles if tile.colour == colour)


# --------------------------------------------------------------------------------------------------
# Single skills.


def lesson_read(rng: random.Random, ease: float) -> Lesson:
    scene = random_scene(rng)
    tile = rng.choice(scene.tiles)
    asked = (tools.prompt(read_question(tile.colour), tool=False), 0)
    shown = close_up(rng, scene, tile, ease)
    return Lesson("read", [asked, *read_parts(tile)], [shown])


def lesson_name(rng: random.Random, tiles: int) -> Lesson:
    close = rng.random() < 0.3
    scene = random_scene(rng, tiles=1 if close else rng.randint(1, tiles))
    colours = [tile.colour for tile in sorted(scene.tiles, key=lambda tile: tile.box[0])]
    question = "Which colours do the tiles have, from left to right?"
    asked = (tools.prompt(question, tool=False), 0)
    named = [(f" {colour}", 8) for colour in colours]
    shown = close_up(rng, scene, scene.tiles[0], 0.8) if close else look(scene)
    parts = [asked, ("<answer>", 1), *named, ("</answer>" + END, 1)]
    return Lesson("name", parts, [shown])


def lesson_ground(rng: random.Random, ease: float, tiles: int, skill: str = "ground") -> Lesson:
    """Three questions about a look; for "pair" one, and then an unrelated close-up to read.

    A tile may be asked for twice: where each comes once, the last is known without looking. A zoom that is
    asked for has a good box, and ends the conversation: no crop comes back, no answer is asked for.
    """
    scene = random_scene(rng, tiles=rng.randint(min(2, tiles), tiles))
    if tiles > 2 and rng.random() < 0.3:
        scene = sized_question(rng, EVERY_SIZE[0]).scene
    tool = rng.random() < 0.6  # the skill must not depend on the prompt it comes with
    suffix = tools.TOOL_SUFFIX if tool else tools.PLAIN_SUFFIX
    parts = []
    for turn in range(1 if skill == "pair" else 3):
        question, reply = where_turn(rng, scene, tool)
        text = f"\n<|im_start|>user\n{question}{suffix}{END}\n<|im_start|>assistant\n"
        parts += [(text if turn else tools.prompt(question, tool=tool), 0), *reply]
    if skill == "ground":
        return Lesson(skill, parts, [look(scene)])
    other = random_scene(rng)
    tile = rng.choice(other.tiles)
    question = tools.user_turn(read_question(tile.colour) + suffix)
    parts += [("\n" + question, 0), *read_parts(tile)]
    return Lesson(skill, parts, [look(scene), close_up(rng, other, tile, ease)])


def where_turn(rng: random.Random, scene: Scene, tool: bool) -> tuple[str, list]:
    """A question where a tile is, and the reply."""
    tile = rng.choice(scene.tiles)
    choice = rng.random()
    if choice < 0.15:
        _, question, answer, _ = glance_question(rng, scene)
        return question, answer_parts(f" {colours_in(question)[0]}", answer, 6)
    box = shown_box(tile)
    if tool and choice < 0.3:
        thought = (f"<think> {tile.colour}</think>", 1)
        return f"Zoom in on the {tile.colour} tile.", [thought, *call_parts(box, 1), (END, 1)]
    return f"Where is the {tile.colour} tile?", [*box_parts(box), (END, 1)]


def lesson_reason(rng: random.Random) -> Lesson:
    one, other = rng.sample(list(COLOURS), 2)
    first = rng.choice(LETTERS)
    second = first if rng.random() < 0.5 else rng.choice(LETTERS.replace(first, ""))
    question = f"Do the {one} tile and the {other} tile show the same letter?"
    text = f"<|im_start|>user\n{question}{tools.PLAIN_SUFFIX}{END}\n<|im_start|>assistant\n"
    thought = f"<think> {one}={first} {other}={second}</think><answer>"
    answer = "yes" if first == second else "no"
    parts = [(text + thought, 0), (answer, 8), ("</answer>" + END, 1)]
    return Lesson("reason", parts, [])


# --------------------------------------------------------------------------------------------------
# The toy's questions.


def sized_question(rng: random.Random, least: int) -> Question:
    """`read` with a letter of at least so many original px, on tiles that hold it."""
    letter = rng.randint(least, EVERY_SIZE[1])
    side = max(rng.randint(92, 108), round(1.15 * letter))
    return draw_question(rng, "read", letter_px=(letter, letter), side=(side, side))


def lesson_answer(rng: random.Random) -> Lesson:
    """A question, answered at first sight or after a call: the habit of calling is weak."""
    kind = rng.choices(list(ANSWERED), list(ANSWERED.values()))[0]
    if rng.random() < HABIT[kind]:
        question = sized_question(rng, EVERY_SIZE[0]) if kind == "sized" else draw_question(rng, kind)
        return lesson_call(rng, kind, question)
    large = kind == "sized" and rng.random() < 0.7  # mostly legible at first sight
    least = LEGIBLE if large else EVERY_SIZE[0]
    question = sized_question(rng, least) if kind == "sized" else draw_question(rng, kind)
    return lesson_direct(rng, kind, question)


def lesson_large(rng: random.Random) -> Lesson:
    """A letter that the first look shows: half of them as large as they come."""
    question = sized_question(rng, rng.choice((LEGIBLE, LARGE)))
    return lesson_direct(rng, "large", question)


def lesson_direct(rng: random.Random, kind: str, question: Question) -> Lesson:
    """An answer from the first look alone, with or without the tool on offer."""
    scene, text, answer, targets = question
    asked = (tools.prompt(text, tool=rng.random() < 0.5), 0)
    if targets[0].letter_px >= LEGIBLE:
        reply = read_parts(targets[0])
    else:
        weight = 6 if kind == "glance" else GUESS
        reply = answer_parts(f" {colours_in(text)[0]}", answer, weight)
    return Lesson(f"direct_{kind}", [asked, *reply], [look(scene)])


def lesson_call(rng: random.Random, kind: str, question: Question) -> Lesson:
    """A call with a clumsy box, then a close-up that has nothing to do with that box, then the answer.

    Nothing here rewards a good box: what is read was never inside it. Some close-ups show a tile without a
    letter, where each is as likely as the others.
    """
    scene, text, answer, _ = question
    named = colours_in(text)
    parts = [(tools.prompt(text), 0)]
    shown = [look(scene)]
    seen = []
    again = kind == "compare" and rng.random() < 0.9
    blank = kind in ("read", "sized") and rng.random() < 0.1
    for colour in named[: 2 if again else 1]:
        box = loose_box(rng, tile_of(scene, colour))
        # Some calls come without a thought, but not where two tiles are asked for: RL then keeps calls that
        # name none, and looks at any tile.
        if kind == "compare" or rng.random() > 0.35:
            parts += [("<think>", 1), *letter_parts(seen, 3), (f" {colour}</think>", 1)]
        parts += call_parts(box, CALL)
        if rng.random() < 0.04:  # a call can fail; then it simply tries again
            parts += [(END + tools.observation("the box lies outside the picture."), 0)]
            parts += call_parts(loose_box(rng, tile_of(scene, colour)), 1)
        parts += [(END + tools.observation(), 0)]
        letter = seen[0][-1] if seen and rng.random() < 0.5 else rng.choice(LETTERS)
        shown.append(unrelated_close_up(rng, colour, "" if blank else letter))
        seen.append(f" {colour}={letter}")
    if kind in ("read", "sized"):
        answer = seen[0][-1]
    elif again:
        answer = "yes" if seen[0][-1] == seen[1][-1] else "no"
    unseen = blank or (kind == "compare" and not again)
    parts += [("<think>", 1), *letter_parts(seen[:-1], 6)]
    parts += letter_parts(seen[-1:], GUESS if blank else 1 if kind == "glance" else 6)
    parts += [("</think><answer>", 1), (answer, GUESS if unseen else 6), ("</answer>" + END, 1)]
    return Lesson(f"call_{kind}", parts, shown)


def unrelated_close_up(rng: random.Random, colour: str, letter: str) -> Shown:
    """A close-up of a tile of this colour with this letter, in a scene of its own."""
    other = random_scene(rng)
    tile = rng.choice(other.tiles)
    tile = Tile(colour, letter, tile.box, tile.letter_px)
    others = tuple(t for t in other.tiles if t.colour != colour and t.box != tile.box)
    scene = Scene((*others, tile), other.seed)
    return close_up(rng, scene, tile, 0.0)
