"""Make the tiny base: a Qwen2.5-VL of under 3 M parameters, with the skills that the large models have before
any RL.

    python -m toy.make_base --out runs/base            # 6,500 steps of about a second on 2 cores; resumes

It learns, supervised and from scratch, to
    read      name the letter in a close-up, also when the close-up is the second image of a conversation
    ground    give the box of a named tile in a first look (the whole image shrunk to 112 px), as JSON
    answer    questions of every kind at first sight; letters are illegible there, and have to be guessed
    zoom      on a named tile when told to, with a good box; no crop comes back
    call      for a question: one time in three, and with boxes that are too wide, off centre, or anywhere
It never sees a trajectory in which its own good box led to the answer: after a call it is shown a close-up
that has nothing to do with the box. Putting box and reading together is left to RL.
"""

import argparse
import bisect
import math
import random
import re
import shutil
import time
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

import tools
from engine.inputs import expand_image_tokens
from grading.answers import find_answer
from grading.boxes import iou
from model import ZoomProcessor, load_model
from safe.files import append_rows, keep_rows, write_json
from toy.world import (
    COLOURS,
    LETTERS,
    SIZE,
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
BATCH = 64
STEPS = 6500
LAST = 4400  # where a stage begins at a lower rate
FINAL = 4900  # where the next does
SIZES = 5900  # and where letters of all sizes come in
# Lessons in a batch of the kinds read, ground, name and pair, by stage; all others are answers or calls.
MIXTURES = (
    (56, 4, 4, 0),
    (8, 28, 28, 0),
    (20, 24, 16, 0),
    (16, 24, 8, 6),
    (4, 26, 2, 2),
    (6, 40, 16, 0),  # which tile is which
    (4, 26, 2, 2),
    (2, 14, 2, 2),  # answers after calls
    (2, 10, 1, 2),  # two letters kept apart, letters plain to see, tiles without one
    (6, 8, 1, 3),  # letters of every size, in looks and in close-ups
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Whole blocks as single tokens: the real prompts at the price of a few tokens.
BLOCKS = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    tools.TOOL_SYSTEM,
    tools.PLAIN_SYSTEM,
    tools.TOOL_SUFFIX,
    tools.PLAIN_SUFFIX,
    tools.BOXED_SUFFIX,
    f'{{"name": "{tools.TOOL}", "arguments": ',
    '{"bbox_2d": [',
    "]}",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's special tokens and one token a digit."""
    corpus = []  # written out, not drawn: a change of the world must not shuffle the ids of a trained base
    for colour in COLOURS:
        for question in (read_question(colour), f"Where is the {colour} tile?"):
            corpus += [question] * 50
        corpus += [f"Is the {colour} tile on the left or on the right?", "left", "right"] * 20
        corpus += [f"Is the {colour} tile at the top or at the bottom?", "top", "bottom"] * 20
        corpus += [
            f"Do the {colour} tile and the {other} tile show the same letter?" for other in COLOURS
        ] * 10
        corpus += [f" {colour}={letter}" for letter in LETTERS] * 5 + ["yes", "no"] * 20
    corpus += ["system\n", "user\n", "assistant\n", "Error: "] * 20
    corpus += [tools.TOOL_SYSTEM, tools.TOOL_SUFFIX]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=512,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )
    fast.add_special_tokens(
        {"additional_special_tokens": [t for t in SPECIAL if t not in fast.all_special_tokens]}
    )
    fast.add_tokens([AddedToken(block, special=False, normalized=False) for block in BLOCKS])
    return fast


def make_processor() -> ZoomProcessor:
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=1280 * 28 * 28)
    return ZoomProcessor(images, make_tokenizer())


def make_model(tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            bos_token_id=None,
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|endoftext|>"),
        ),
        vision_config=dict(
            depth=3,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            out_hidden_size=128,
            fullatt_block_indexes=[2],
            patch_size=14,
            window_size=112,
        ),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        tie_word_embeddings=True,
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    # The class's std of 0.02 leaves the branches of so narrow a model near zero, where it learns nothing for
    # tens of thousands of images.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    return model


# --------------------------------------------------------------------------------------------------
# The lessons. A lesson is a conversation: (text, weight) parts, and an image for each `tools.IMAGE`.
# Weight 0: context, not learned; the tokens that carry the information weigh most.

END = "<|im_end|>"
# How often a question is shown with a call.
HABIT = {"read": 0.7, "compare": 0.6, "glance": 0.2, "legible": 0.0}
LAST_HABIT = {"read": 0.5, "compare": 0.7, "glance": 0.5, "legible": 0.0}
FINAL_KINDS = (0.22, 0.33, 0.15, 0.3)
SIZES_KINDS = (0.15, 0.22, 0.1, 0.53)
EVERY_SIZE = (36, 210)  # px
LEGIBLE = 140  # px; a letter from here on is read in a first look, where it is 16 px high
CALL = 0.4  # the weight of deciding for a call, against 2 for an answer: the habit stays weak
GUESS = 0.3  # an answer that can't be seen from the image: learn the form, not the luck


def look(scene: Scene):
    return tools.View(render(scene), (LOOK, LOOK)).look()


def close_up(rng: random.Random, scene: Scene, tile: Tile, widest: int, letter_px: int):
    """An image of the surroundings of one tile, its whole letter inside, in any framing, at the size at which
    a crop is shown."""
    scene = Scene(tuple(with_letter(t, letter_px) for t in scene.tiles), scene.seed)
    side = rng.uniform(max(90, letter_px + 10), max(widest, 1.5 * letter_px))
    stretch = rng.uniform(-0.25, 0.25)
    width = side * math.exp(stretch)
    height = side * math.exp(-stretch)
    slack_x = max(0, width / 2 - letter_px / 2 - 6)
    slack_y = max(0, height / 2 - letter_px / 2 - 6)
    x = (tile.box[0] + tile.box[2]) / 2 + rng.uniform(-slack_x, slack_x)
    y = (tile.box[1] + tile.box[3]) / 2 + rng.uniform(-slack_y, slack_y)
    left = max(0, x - width / 2)
    top = max(0, y - height / 2)
    right = min(SIZE, x + width / 2)
    bottom = min(SIZE, y + height / 2)
    crop = render(scene, (round(left), round(top), round(right), round(bottom)))
    return tools.resize(crop, tools.fit(crop.size, CROP_PIXELS))


def with_letter(tile: Tile, letter_px: int) -> Tile:
    """The tile with its letter of this height; it grows where the letter needs it."""
    x, y = tile.middle()
    half = max(tile.box[2] - tile.box[0], 1.15 * letter_px) / 2
    box = tile.box if letter_px <= 80 else (x - half, y - half, x + half, y + half)
    return Tile(tile.colour, tile.letter, box, letter_px)


def framing(rng: random.Random, ease: float, sizes: bool = False) -> tuple[int, int]:
    """(widest side of a close-up, letter height) in original px: from huge letters at ease 1 to the world's
    own at 0. sizes: half of them of every size."""
    if sizes and rng.random() < 0.5:
        return 300, rng.randint(*EVERY_SIZE)
    own = rng.random() > max(ease, 0.15)
    letter = rng.randint(36, 40) if own else rng.randint(round(40 + 35 * ease), 80)
    return round(300 - 150 * ease), letter


def box_parts(box, weight: float = 1.0):
    """`{"bbox_2d": [..]}`. The first digit decides which tile it is, and weighs most."""
    parts = [('{"bbox_2d": [', weight)]
    for i, value in enumerate(box):
        digits = str(round(value))
        lead, rest = ((10, 1), (4, 1), (1, 0.5), (1, 0.5))[i]
        parts.append(("," if i else "", 0.3))
        parts.append((digits[0], weight * lead))
        parts.append((digits[1:], weight * rest))
    return [*parts, ("]}", 0.3)]


def call_parts(box, decision: float):
    """A call with this box; decision: the weight of deciding for a call at all."""
    parts = [("<tool_call>", decision), (f'{{"name": "{tools.TOOL}", "arguments": ', 1)]
    return [*parts, *box_parts(box, 0.5), ("}</tool_call>", 1)]


def shown_box(tile: Tile):
    return [v * LOOK / SIZE for v in tile.box]


def loose_box(rng: random.Random, tile: Tile):
    """The clumsy box of a call: around the tile in six cases of seven, anywhere else, and too wide."""
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


def lesson_read(rng: random.Random, ease: float, sizes: bool = False):
    """One close-up, one question."""
    scene = random_scene(rng)
    tile = rng.choice(scene.tiles)
    asked = (tools.prompt(read_question(tile.colour), tool=False), 0)
    image = close_up(rng, scene, tile, *framing(rng, ease, sizes))
    return [asked, *read_parts(tile)], [image]


def read_parts(tile: Tile):
    return [
        (f"<think> {tile.colour}", 1),
        ("=", 1),
        (tile.letter, 8),
        ("</think><answer>", 1),
        (tile.letter, 1),
        ("</answer>" + END, 1),
    ]


def tile_of(scene: Scene, colour: str) -> Tile:
    return next(tile for tile in scene.tiles if tile.colour == colour)


def colours_in(question: str) -> list[str]:
    return sorted((colour for colour in COLOURS if colour in question), key=question.index)


def answer_parts(thought: str, answer: str, weight: float):
    return [
        (f"<think>{thought}</think>", 1),
        ("<answer>", 2),
        (answer, weight),
        ("</answer>" + END, 1),
    ]


def lesson_name(rng: random.Random, tiles: int, close: bool):
    """Name the colours of the tiles, left to right. Without it, pointing never learns to tell tiles apart."""
    scene = random_scene(rng, tiles=1 if close else rng.randint(1, tiles))
    colours = [tile.colour for tile in sorted(scene.tiles, key=lambda tile: tile.box[0])]
    question = "Which colours do the tiles have, from left to right?"
    asked = (tools.prompt(question, tool=False), 0)
    named = [(f" {colour}", 8) for colour in colours]
    image = close_up(rng, scene, scene.tiles[0], 180, 38) if close else look(scene)
    return [asked, ("<answer>", 1), *named, ("</answer>" + END, 1)], [image]


def lesson_ground(
    rng: random.Random,
    tiles: int,
    ease: float,
    second_image: bool,
    where: bool = False,
    sizes: bool = False,
):
    """Where is a tile of a first look, on which side? Or: zoom in on it. Then perhaps an unrelated close-up.

    A tile may be asked for twice: where each comes once, the last is known without looking. A zoom that is
    asked for has a good box, and ends the conversation: no crop comes back, no answer is asked for.
    """
    scene = random_scene(rng, tiles=rng.randint(2 if where else 1, tiles))
    if sizes and rng.random() < 0.4:
        scene = draw_lesson(rng, "sized").scene
    sides, calls = (0.15, 0.3) if where else (0.35, 0.75)
    tool = rng.random() < 0.6  # the skill must not depend on the prompt it comes with
    turns = []
    for _ in range(1 if second_image else 3):
        tile = rng.choice(scene.tiles)
        choice = rng.random()
        if choice < sides:
            _, question, answer, _ = glance_question(rng, scene)
            turns.append((question, answer_parts(f" {colours_in(question)[0]}", answer, 6)))
        elif tool and choice < calls:
            thought = (f"<think> {tile.colour}</think>", 1)
            reply = [thought, *call_parts(shown_box(tile), 1), (END, 1)]
            turns.append((f"Zoom in on the {tile.colour} tile.", reply))
        else:
            turns.append((f"Where is the {tile.colour} tile?", [*box_parts(shown_box(tile)), (END, 1)]))
    suffix = tools.TOOL_SUFFIX if tool else tools.PLAIN_SUFFIX
    question, reply = turns[0]
    parts = [(tools.prompt(question, tool=tool), 0), *reply]
    images = [look(scene)]
    for question, reply in turns[1:]:
        text = f"\n<|im_start|>user\n{question}{suffix}{END}\n<|im_start|>assistant\n"
        parts += [(text, 0), *reply]
    if second_image:
        other = random_scene(rng)
        tile = rng.choice(other.tiles)
        question = tools.user_turn(read_question(tile.colour) + suffix)
        parts += [("\n" + question, 0), *read_parts(tile)]
        images.append(close_up(rng, other, tile, *framing(rng, ease, sizes)))
    return parts, images


def lesson_reason(rng: random.Random):
    """Text alone: two letters have been read, are they the same?"""
    one, other = rng.sample(list(COLOURS), 2)
    first = rng.choice(LETTERS)
    second = first if rng.random() < 0.5 else rng.choice(LETTERS.replace(first, ""))
    question = f"Do the {one} tile and the {other} tile show the same letter?"
    text = f"<|im_start|>user\n{question}{tools.PLAIN_SUFFIX}{END}\n<|im_start|>assistant\n"
    thought = f"<think> {one}={first} {other}={second}</think><answer>"
    answer = "yes" if first == second else "no"
    return [(text + thought, 0), (answer, 8), ("</answer>" + END, 1)], []


def draw_lesson(rng: random.Random, kind: str, direct: bool = False):
    """A question of the toy; "sized" is `read` with letters of every size, on tiles that hold them.

    direct: to be answered at first sight, and so mostly legible there.
    """
    if kind != "sized":
        return draw_question(rng, kind)
    large = direct and rng.random() < 0.7
    letter = rng.randint(LEGIBLE if large else EVERY_SIZE[0], EVERY_SIZE[1])
    side = max(rng.randint(92, 108), round(1.15 * letter))
    return draw_question(rng, "read", letter_px=(letter, letter), side=(side, side))


def lesson_direct(rng: random.Random, kind: str, tool: bool, final: bool):
    """An answer from the first look alone, with or without the tool on offer."""
    scene, question, answer, targets = draw_lesson(rng, kind, direct=True)
    if kind == "sized":
        kind = "legible" if targets[0].letter_px >= LEGIBLE else "read"
    weight = {"read": GUESS, "compare": GUESS}.get(kind, 6)
    colour = colours_in(question)[0]
    asked = (tools.prompt(question, tool=tool), 0)
    if kind != "legible":
        return [asked, *answer_parts(f" {colour}", answer, weight)], [look(scene)]
    if final:  # the letter is read in the thought; the answer only repeats it
        return [asked, *read_parts(tile_of(scene, colour))], [look(scene)]
    return [asked, *answer_parts(f" {colour}={answer}", answer, weight)], [look(scene)]


def lesson_call(rng: random.Random, kind: str, ease: float, last: bool, final: bool = False, sizes=False):
    """A call with a clumsy box, then a close-up that has nothing to do with that box, then the answer.

    Nothing here rewards a good box: what is read was never inside it. last: calls without a thought, too,
    and more weight on the answers. final: weight on every letter, and tiles without one, where each is as
    likely as the others. sizes: letters of every size in the close-ups.
    """
    scene, question, answer, _ = draw_lesson(rng, kind)
    kind = "read" if kind == "sized" else kind
    named = colours_in(question)
    parts = [(tools.prompt(question), 0)]
    images = [look(scene)]
    seen = []
    second_call = kind == "compare" and rng.random() < 0.9
    for colour in named[: 2 if second_call else 1]:
        target = tile_of(scene, colour)
        letters = letter_parts(seen, 3 if final else 1)
        thought = [("<think>", 1), *letters, (f" {colour}</think>", 1)]
        if (kind != "compare" or last) and rng.random() <= (0.35 if last else 0.1):
            thought = []
        parts += [*thought, *call_parts(loose_box(rng, target), CALL)]
        if rng.random() < 0.04:  # a call can fail; then it simply tries again
            parts += [(END + tools.observation("the box lies outside the picture."), 0)]
            parts += call_parts(loose_box(rng, target), 1)
        parts += [(END + tools.observation(), 0)]
        # The close-up: a tile of the named colour, with a letter of its own.
        other = random_scene(rng)
        tile = rng.choice(other.tiles)
        letter = seen[0][-1] if seen and rng.random() < 0.5 else tile.letter
        blank = final and kind == "read" and rng.random() < 0.1
        tile = Tile(colour, "" if blank else letter, tile.box, tile.letter_px)
        others = tuple(t for t in other.tiles if t.colour != colour and t.box != tile.box)
        images.append(close_up(rng, Scene((*others, tile), other.seed), tile, *framing(rng, ease, sizes)))
        seen.append(f" {colour}={letter}")
    if kind == "read":
        answer = seen[0][-1]
    elif second_call:
        answer = "yes" if seen[0][-1] == seen[1][-1] else "no"
    weight = GUESS if kind == "compare" and not second_call else 6 if last else 3
    heavy = GUESS if not tile.letter else 1 if kind == "glance" else 6
    parts.append(("<think>", 1))
    parts += letter_parts(seen[:-1], 6 if final else 1)
    parts += letter_parts(seen[-1:], heavy)
    weight = weight if tile.letter else GUESS
    return [
        *parts,
        ("</think><answer>", 1),
        (answer, weight),
        ("</answer>" + END, 1),
    ], images


def letter_parts(seen: list[str], weight: float):
    """What has been read, `" red=C"` each; weight: of the letters."""
    return [part for each in seen for part in ((each[:-1], 1), (each[-1], weight))]


def lessons(step: int, steps: int, seed: int):
    """The batch of one step, named by skill: letters, then colours and places, the formats last."""
    rng = random.Random(f"{seed}-{step}")
    now = step * STEPS / steps  # the schedule is written for so many steps
    ease = min(1.0, max(0.0, (1840 - now) / 1200))  # letters shrink from step 640 on
    tiles = 1 if now < 800 else 2 if now < 1240 or 2100 <= now < 2350 else 4
    stage = bisect.bisect((520, 800, 1240, 1760, 2100, 2700, LAST, FINAL, SIZES), now)
    sizes = stage == 9
    read, ground, name, pair = MIXTURES[stage]
    batch = [("read", *lesson_read(rng, ease, sizes)) for _ in range(read)]
    for _ in range(ground):
        lesson = lesson_ground(rng, tiles, ease, False, where=stage == 5, sizes=sizes)
        batch.append(("ground", *lesson))
    for _ in range(name):
        batch.append(("name", *lesson_name(rng, tiles, close=rng.random() < 0.3)))
    for _ in range(pair):
        batch.append(("pair", *lesson_ground(rng, 1, ease, True, sizes=sizes)))
    while len(batch) < BATCH:
        batch.append(answer_or_call(rng, stage, ease))
    for _ in range(16 if stage in (4, 6, 7, 8, 9) else 0):
        batch.append(("reason", *lesson_reason(rng)))
    return batch


def answer_or_call(rng: random.Random, stage: int, ease: float):
    """A question, answered at first sight or after a call: the habit of calling is weak."""
    final = stage >= 8
    sizes = stage == 9
    shares = FINAL_KINDS if final else (0.35, 0.27, 0.33, 0.05)
    shares = SIZES_KINDS if sizes else shares
    kind = rng.choices(("read", "compare", "glance", "legible"), shares)[0]
    habit = LAST_HABIT if stage >= 7 else HABIT if stage in (4, 6) else dict.fromkeys(HABIT, 0.3)
    if sizes and kind == "legible":
        kind = "sized"
    # As often for a letter of any size: RL has to find out which of them need a call.
    called = 0.35 if kind == "sized" else habit[kind]
    if kind != "legible" and rng.random() < called:
        return f"call_{kind}", *lesson_call(rng, kind, ease, stage >= 7, final, sizes)
    offered = rng.random() < (0.5 if final else 0.8)
    return f"direct_{kind}", *lesson_direct(rng, kind, tool=offered, final=final)


class Lessons(Dataset):
    """Step -> its batch, ready and in three parts by length; a map, so that a resumed run sees the same
    lessons."""

    def __init__(self, processor: ZoomProcessor, start: int, steps: int, seed: int):
        self.processor = processor
        self.start = start
        self.steps = steps
        self.seed = seed
        # A few hundred different parts make up all lessons.
        self.tokens = lru_cache(10_000)(self.tokenise)

    def tokenise(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def __len__(self):
        return self.steps - self.start

    def __getitem__(self, index: int) -> list[dict]:
        rows = [
            (skill, *self.encode(parts, images))
            for skill, parts, images in lessons(self.start + index, self.steps, self.seed)
        ]
        rows.sort(key=lambda row: len(row[1]))  # short with short: half of a mixed batch is padding
        third = -(-len(rows) // 3)
        return [self.collate(rows[i : i + third]) for i in range(0, len(rows), third)]

    def encode(self, parts, images):
        """One lesson -> token ids, a loss weight per token, and its preprocessed images."""
        pad = self.processor.image_processor.merge_size**2
        pixels = self.processor.image_processor(images, return_tensors="pt") if images else {}
        counts = iter((pixels["image_grid_thw"].prod(-1) // pad).tolist() if images else [])
        ids = []
        weights = []
        for text, weight in parts:
            for token in self.tokens(text):
                repeat = next(counts) if token == self.processor.image_token_id else 1
                ids += [token] * repeat
                weights += [weight] * repeat
        return ids, weights, pixels

    def collate(self, rows) -> dict:
        skills, all_ids, all_weights, all_pixels = zip(*rows)
        longest = max(map(len, all_ids))
        missing = [longest - len(ids) for ids in all_ids]
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * n for row, n in zip(all_ids, missing)])  # (B, T)
        weights = [row + [0.0] * n for row, n in zip(all_weights, missing)]
        weights = torch.tensor(weights)  # (B, T)
        mask = torch.tensor([[1] * len(row) + [0] * n for row, n in zip(all_ids, missing)])
        seen = [pixels for pixels in all_pixels if pixels]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "weights": weights,
            "skills": list(skills),
            "mm_token_type_ids": (ids == self.processor.image_token_id).int(),
            "pixel_values": torch.cat([pixels["pixel_values"] for pixels in seen]),
            "image_grid_thw": torch.cat([pixels["image_grid_thw"] for pixels in seen]),
        }


# --------------------------------------------------------------------------------------------------


def loss_and_hits(model, batch: dict, heavy: float = 2.5):
    """Weighted cross-entropy (a sum, and the sum of weights), and for each lesson its skill and the fraction
    of its heavy tokens that are correct."""
    skills = batch.pop("skills")
    weights = batch.pop("weights")[:, 1:]
    # Twice as fast as float32 on a CPU that has products for bfloat16, ten times slower on one that has not.
    has_bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
        logits = model(**batch, use_cache=False).logits[:, :-1].float()  # (B, T-1, V)
    targets = batch["input_ids"][:, 1:]
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
    counted = weights >= heavy
    right = ((logits.argmax(-1) == targets) & counted).sum(1) / counted.sum(1)
    return (losses * weights).sum(), weights.sum(), list(zip(skills, right.tolist()))


def resume(out: Path, stateful: dict) -> int:
    """Load the last saved state into model, optimizer and schedule; returns its step, or 0."""
    if not (out / "state.pt").exists():
        return 0
    state = torch.load(out / "state.pt", weights_only=True)
    for name, part in stateful.items():
        part.load_state_dict(state[name])
    keep_rows(out / "log.jsonl", lambda row: row["step"] <= state["step"])
    print(f"resumed at step {state['step']}")
    return state["step"]


def save(out: Path, stateful: dict, line: dict) -> None:
    """Log one line, then save the state, at once or not at all."""
    append_rows(out / "log.jsonl", line)
    print("  ".join(f"{k} {v}" for k, v in line.items()), flush=True)
    state = {name: part.state_dict() for name, part in stateful.items()} | {"step": line["step"]}
    torch.save(state, out / "state.tmp")
    (out / "state.tmp").rename(out / "state.pt")


def rate(now: float) -> float:
    """The learning rate over its peak, at a step of the full schedule."""
    if now < LAST:
        return min(1, (now + 1) / 50) * min(1, 0.05 + 0.95 * (LAST - now) / (0.5 * LAST))
    ends = (LAST, FINAL, SIZES, STEPS)
    stage = bisect.bisect(ends, now, hi=3)
    begin = ends[stage - 1]
    end = ends[stage]
    return 0.02 + 0.38 * (end - now) / (end - begin)


def train(out: Path, steps: int, seed: int, threads: int, peak_lr: float) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    processor = make_processor()
    model = make_model(processor.tokenizer).train()
    # The backward pass of sdpa is twice as slow on a CPU.
    model.model.language_model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step * STEPS / steps))
    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    start = resume(out, stateful)
    began = time.time()
    hits = {}
    lessons_ahead = Lessons(processor, start, steps, seed)
    loader = DataLoader(lessons_ahead, batch_size=None, num_workers=1, prefetch_factor=4)
    for step, parts in enumerate(loader, start + 1):
        total_weight = sum(part["weights"][:, 1:].sum() for part in parts)
        for part in parts:
            loss, _, results = loss_and_hits(model, part)
            (loss / total_weight).backward()
            for skill, hit in results:
                hits.setdefault(skill, []).append(hit)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            seen = {skill: [v for v in values if v == v] for skill, values in sorted(hits.items())}
            rates = {skill: round(sum(v) / len(v), 3) for skill, v in seen.items() if v}
            save(out, stateful, {"step": step, "seconds": round(time.time() - began), **rates})
            hits = {}
    # bfloat16 is half the size, and nothing is lost when it is loaded as float32.
    model.eval().to(torch.bfloat16).save_pretrained(out / "base")
    processor.save_pretrained(out / "base")
    shutil.copy(out / "log.jsonl", out / "base" / "training_log.jsonl")


# --------------------------------------------------------------------------------------------------
# What it can do in the end, measured by greedy decoding on images that no lesson had.


@torch.no_grad()
def write(model, processor: ZoomProcessor, conversations: list[tuple[str, list]]) -> list[str]:
    """Greedy continuations of (text, images) conversations."""
    tokenizer = processor.tokenizer
    shown = [image for _, images in conversations for image in images]
    pixels = processor.image_processor(shown, return_tensors="pt")
    ids = [expand_image_tokens(processor, text, images) for text, images in conversations]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    batch["mm_token_type_ids"] = (batch["input_ids"] == processor.image_token_id).int()
    written = model.generate(**batch, **pixels, max_new_tokens=40, do_sample=False)
    return tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def measure_skills(model, processor: ZoomProcessor, n: int = 300, seed: int = 12345) -> dict[str, float]:
    """Reading (alone, and as a second image), grounding, answers at first sight; n fresh images each."""
    rng = random.Random(seed)
    skills = {}
    makers = {
        "read": lambda: lesson_read(rng, 0.0),
        "pair": lambda: lesson_ground(rng, 1, 0.0, True),
    }
    for name, make_lesson in makers.items():
        asked = []
        gold = []
        for _ in range(n):
            parts, images = make_lesson()
            # The last six parts are the reply, see `read_parts`.
            asked.append(("".join(text for text, _ in parts[:-6]), images))
            gold.append(parts[-2][0])
        said = map(find_answer, write(model, processor, asked))
        skills[name] = fmean(answer == letter for answer, letter in zip(said, gold))
    scenes = [random_scene(rng) for _ in range(n)]
    tiles = [rng.choice(scene.tiles) for scene in scenes]
    questions = [tools.prompt(f"Where is the {tile.colour} tile?", tool=False) for tile in tiles]
    asked = [(question, [look(scene)]) for question, scene in zip(questions, scenes)]
    overlaps = []
    for text, tile in zip(write(model, processor, asked), tiles):
        numbers = [int(v) for v in re.findall(r"\d{1,3}", text)[-4:]]
        overlaps.append(iou(numbers, shown_box(tile)) if len(numbers) == 4 else 0.0)
    skills["ground_iou"] = fmean(overlaps)
    for kind in ("read", "compare", "glance"):
        questions = [draw_question(rng, kind) for _ in range(n)]
        asked = [(tools.prompt(text, tool=False), [look(scene)]) for scene, text, _, _ in questions]
        said = map(find_answer, write(model, processor, asked))
        gold = [answer for _, _, answer, _ in questions]
        skills[f"first_look_{kind}"] = fmean(s == g for s, g in zip(said, gold))
    return {name: round(value, 3) for name, value in skills.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/base"),
        help="where state, log and the finished base go",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} lessons")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        help="more than the free cores makes it many times slower",
    )
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args.out, args.steps, args.seed, args.threads, args.lr)
    skills = measure_skills(*load_model(str(args.out / "base"), device="cpu"))
    write_json(args.out / "base" / "skills.json", skills)
    print("  ".join(f"{name} {value}" for name, value in skills.items()))
    print(f"the base is in {args.out / 'base'}; to use it: cp -r {args.out / 'base'} toy/")


if __name__ == "__main__":
    main()
