"""Make the tiny base: a Qwen2.5-VL of under 3 M parameters, with the skills that the large models have before
any RL.

    python -m toy.make_base --out runs/base            # 50 to 90 minutes on 2 cores; goes on if stopped

It learns, supervised and from scratch, in the stages below, to read a letter in a close-up, to give the box
of a named tile, to answer at first sight, and to call the tool now and then, with boxes that are too wide,
off centre, or anywhere (lessons.py). It never sees a trajectory in which its own box led to the answer: after
a call it is shown a close-up that has nothing to do with the box. Putting both together is left to RL.

The same seed gives the same base on the same machine with as many threads, stopped in between or not.
"""

import bisect
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from statistics import fmean

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import tools
from config import flag, parse, run_command
from engine.inputs import expand_image_tokens, padded
from grading.answers import find_answer
from grading.boxes import iou
from model import ZoomProcessor, load_model
from safe.files import append_rows, keep_rows, write_json
from toy.lessons import (
    EVERY_SIZE,
    LEGIBLE,
    Lesson,
    draw_lesson,
    look,
    shown_box,
)
from toy.tiny import make_model, make_processor
from toy.world import draw_question, random_scene

PARTS = 5  # of a batch, by length: half of a mixed batch would be padding
LR = 4e-3  # of Muon
HEAVY = 2.5  # weight from which a token carries information
ASKED = 300  # questions for each skill that is measured
AGAIN = 100  # the last steps of a stage, which come again if it is below its bar
PATIENCE = 1500  # such steps at most, of all stages together


@dataclass(frozen=True)
class Stage:
    """Some steps of training with one mixture of lessons."""

    name: str
    steps: int
    lessons: dict[str, int]  # of each kind in a batch
    ease: tuple[float, float]  # from its first step to its last: 1 for huge letters, 0 for the world's own
    tiles: tuple[int, int]  # in a first look, at most
    rate: tuple[float, float]  # the learning rate over its peak
    bar: dict[str, float]  # what each skill should reach by its end
    waits: bool = False  # does it go on until it reaches its bar?


# Letters first and alone: small ones, or many kinds of lessons at once, stay at chance. Then one tile, then
# two, then four: which tile is which is the hardest to learn. The formats come third. Letters so large that a
# first look shows them come last, and often: where they are few, they are not learned.
STAGES = (
    Stage(
        "letters",
        steps=300,
        lessons={"read": 56, "ground": 4, "name": 4},
        ease=(1.0, 0.8),
        tiles=(1, 1),
        rate=(1.0, 1.0),
        bar={"read_large": 0.6},
        waits=True,
    ),
    Stage(
        "places",
        steps=700,
        lessons={"read": 16, "ground": 30, "name": 12, "pair": 6},
        ease=(0.8, 0.0),
        tiles=(1, 4),
        rate=(1.0, 1.0),
        # Boxes lie on tiles, and begin to lie on the right one. When they begin to is chance: seed 0 needed
        # these steps alone, seed 1 took 1,000 more.
        bar={"ground_iou": 0.25},
        waits=True,
    ),
    Stage(
        "answers",
        steps=1500,
        lessons={"read": 6, "ground": 16, "name": 2, "pair": 2, "answer": 38, "reason": 8},
        ease=(0.0, 0.0),
        tiles=(4, 4),
        rate=(1.0, 0.0),
        bar={"read": 0.95, "pair": 0.92, "ground_iou": 0.83, "first_look_glance": 0.99},
    ),
    Stage(
        "sizes",
        steps=700,
        lessons={"read": 6, "ground": 8, "name": 1, "pair": 3, "answer": 28, "large": 18, "reason": 4},
        ease=(0.0, 0.0),
        tiles=(4, 4),
        rate=(0.4, 0.0),
        bar={
            "read": 0.95,
            "pair": 0.92,
            "ground_iou": 0.83,
            "first_look_glance": 0.99,
            "first_look_large": 0.85,
        },
    ),
)
STEPS = sum(stage.steps for stage in STAGES)


def stage_at(now: float) -> tuple[Stage, float]:
    """The stage at a step of the full schedule, and the part of it that is done.

    >>> stage, part = stage_at(650)
    >>> stage.name, part
    ('places', 0.5)
    """
    ends = list(accumulate(stage.steps for stage in STAGES))
    number = bisect.bisect(ends, now)
    stage = STAGES[number]
    return stage, 1 - (ends[number] - now) / stage.steps


def rate(now: float) -> float:
    """The learning rate over its peak, at a step of the full schedule.

    >>> rate(24), rate(500), rate(1749), rate(2499), rate(2500)
    (0.5, 1.0, 0.5, 0.02, 0.3994)
    """
    stage, part = stage_at(now)
    begin, end = stage.rate
    done = part + 1 / stage.steps  # when this step is
    warm_up = (now + 1) / 50
    return round(min(warm_up, max(0.02, begin + done * (end - begin))), 4)


def lessons(step: int, steps: int, seed: int, waited: int = 0) -> list[Lesson]:
    """The batch of one step.

    steps: of the schedule
    waited: steps that came beyond the schedule until now
    """
    rng = random.Random(f"{seed}-{step}")
    stage, part = stage_at((step - waited) * STEPS / steps)
    ease = stage.ease[0] + part * (stage.ease[1] - stage.ease[0])
    tiles = int(stage.tiles[0] + part * (stage.tiles[1] - stage.tiles[0] + 1))
    batch = []
    for skill, count in stage.lessons.items():
        batch += [draw_lesson(skill, rng, ease, tiles) for _ in range(count)]
    return batch


class Lessons(Dataset):
    """Step -> its batch, ready and in parts by length; a map, so that a resumed run sees the same lessons."""

    def __init__(self, processor: ZoomProcessor, steps: int, seed: int, waited: int = 0):
        self.processor = processor
        self.schedule = (steps, seed, waited)
        # A few hundred different parts make up all lessons.
        self.tokens = lru_cache(10_000)(self.tokenise)

    def tokenise(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def __getitem__(self, step: int) -> list[dict]:
        batch = lessons(step, *self.schedule)
        rows = [(lesson.skill, *self.encode(lesson)) for lesson in batch]
        rows.sort(key=lambda row: len(row[1]))
        size = -(-len(rows) // PARTS)
        return [self.collate(rows[i : i + size]) for i in range(0, len(rows), size)]

    def encode(self, lesson: Lesson):
        """Token ids, a loss weight per token, and the preprocessed images."""
        images = [shown.image for shown in lesson.shown]
        pad = self.processor.image_processor.merge_size**2
        pixels = self.processor.image_processor(images, return_tensors="pt") if images else {}
        counts = iter((pixels["image_grid_thw"].prod(-1) // pad).tolist() if images else [])
        ids = []
        weights = []
        for text, weight in lesson.parts:
            for token in self.tokens(text):
                repeat = next(counts) if token == self.processor.image_token_id else 1
                ids += [token] * repeat
                weights += [float(weight)] * repeat
        return ids, weights, pixels

    def collate(self, rows) -> dict:
        skills, all_ids, all_weights, all_pixels = zip(*rows)
        ids = padded(all_ids)  # (B, T)
        real = ids >= 0
        ids = ids.where(real, self.processor.tokenizer.pad_token_id)
        batch = {
            "input_ids": ids,
            "attention_mask": real.long(),
            "weights": padded(all_weights, 0.0),  # (B, T)
            "skills": list(skills),
            "mm_token_type_ids": (ids == self.processor.image_token_id).int(),
        }
        for name in ("pixel_values", "image_grid_thw"):
            seen = [pixels[name] for pixels in all_pixels if pixels]
            if seen:  # "reason" has no image
                batch[name] = torch.cat(seen)
        return batch


# --------------------------------------------------------------------------------------------------
# Training.


class Muon(torch.optim.Optimizer):
    """Momentum, each matrix's step made orthogonal (Jordan et al. 2024), as large as AdamW's would be (Liu et
    al. 2025). It learns the letters in a third of AdamW's steps.

    torch.optim.Muon is the same in bfloat16, one matrix at a time: 5 s a step on a CPU without products for
    bfloat16, where this takes 0.1 s.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = {}
            for matrix in group["params"]:
                by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
            for shape, matrices in by_shape.items():
                steps = []
                for matrix in matrices:
                    state = self.state[matrix]
                    if not state:
                        state["average"] = torch.zeros_like(matrix)
                    average = state["average"]
                    average.lerp_(matrix.grad, 1 - group["momentum"])
                    steps.append(matrix.grad.lerp(average, group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5
                for matrix, step in zip(matrices, orthogonal(torch.stack(steps))):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(group["lr"] * scale * step)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(N, rows, columns) -> the same with all singular values near 1, by five Newton-Schulz steps."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x if wide else x.mT


def optimizers(model, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, patches, norms and biases."""
    matrices = []
    others = []
    for name, weight in model.named_parameters():
        is_matrix = weight.dim() == 2 and "embed" not in name
        (matrices if is_matrix else others).append(weight)
    return [
        Muon(matrices, lr),
        torch.optim.AdamW(others, lr=0.4 * lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def loss_and_hits(model, batch: dict):
    """Weighted cross-entropy, a sum; and for each lesson its skill and the fraction of its heavy tokens that
    are correct."""
    skills = batch.pop("skills")
    weights = batch.pop("weights")[:, 1:]
    # Twice as fast as float32 on a CPU that has products for bfloat16, ten times slower on one that has not.
    has_bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
        logits = model(**batch, use_cache=False).logits[:, :-1].float()  # (B, T-1, V)
    targets = batch["input_ids"][:, 1:]
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
    counted = weights >= HEAVY
    correct = ((logits.argmax(-1) == targets) & counted).sum(1) / counted.sum(1)
    return (losses * weights).sum(), list(zip(skills, correct.tolist()))


def learn(model, parts: list[dict], optimizers: list) -> list[tuple[str, float]]:
    """One step on one batch. Returns skill and hits of each lesson."""
    total = sum(part["weights"][:, 1:].sum() for part in parts)
    hits = []
    for part in parts:
        loss, found = loss_and_hits(model, part)
        (loss / total).backward()
        hits += found
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad()
    return hits


def train(out: Path, steps: int, seed: int, threads: int, lr: float) -> dict[str, float]:
    """Train, saving as it goes; the base is in out/base. Returns its skills."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    processor = make_processor()
    model = make_model(processor.tokenizer).train()
    # The backward pass of sdpa is twice as slow on a CPU.
    model.model.language_model.set_attn_implementation("eager")
    stateful = [model, *optimizers(model, lr)]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in stateful[1:]]
    start, waited = resume(out, stateful)
    done = start
    ends = [round(end * steps / STEPS) for end in accumulate(stage.steps for stage in STAGES)]
    began = time.time()
    while done - waited < steps:
        number = bisect.bisect(ends, done - waited)
        stage = STAGES[number]
        end = ends[number] + waited
        ahead = Lessons(processor, steps, seed, waited)
        loader = DataLoader(
            ahead,
            batch_size=None,
            sampler=range(done, end),
            num_workers=1,
            prefetch_factor=4,
        )
        hits = {}
        for step, parts in enumerate(loader, done + 1):
            for optimizer, peak in zip(stateful[1:], peaks):
                optimizer.param_groups[0]["lr"] = peak * rate((step - 1 - waited) * STEPS / steps)
            for skill, hit in learn(model, parts, stateful[1:]):
                hits.setdefault(skill, []).append(hit)
            if step % 50 and step != end:
                continue
            line = {"step": step} | means(hits)
            hits = {}
            append_rows(out / "log.jsonl", line)
            left = (time.time() - began) / (step - start) * (steps + waited - step) / 60
            print("  ".join(f"{k} {v}" for k, v in line.items()), f" {left:.0f} min left", flush=True)
            if step < end:
                save(out, stateful, step, waited)
        done = end
        found = measure_bar(model, processor, stage)
        append_rows(out / "log.jsonl", {"step": done} | found)
        if must_wait(stage, found, waited * STEPS / steps):
            waited += max(1, AGAIN * steps // STEPS)
        save(out, stateful, done, waited)
    # bfloat16 is half the size, and nothing is lost when it is loaded as float32.
    model.eval().to(torch.bfloat16).save_pretrained(out / "base")
    processor.save_pretrained(out / "base")
    skills = measure_skills(*load_model(str(out / "base"), device="cpu"), n=ASKED)
    skills["own_crops"] = own_crops(seed)
    write_json(out / "base" / "skills.json", skills)
    (out / "base" / "training_log.jsonl").write_bytes((out / "log.jsonl").read_bytes())
    return skills


def means(hits: dict[str, list[float]]) -> dict[str, float]:
    """Of the hits of each skill; a lesson with nothing heavy has NaN.

    >>> means({"read": [1.0, 0.5], "ground": [float("nan")]})
    {'read': 0.75}
    """
    known = {skill: [value for value in values if value == value] for skill, values in sorted(hits.items())}
    return {skill: round(fmean(values), 3) for skill, values in known.items() if values}


def must_wait(stage: Stage, found: dict[str, float], waited: float) -> bool:
    """Do the last steps of a stage come again? waited: steps that came again, scaled to the whole schedule.

    >>> must_wait(STAGES[1], {"ground_iou": 0.1}, 0), must_wait(STAGES[1], {"ground_iou": 0.1}, PATIENCE)
    (True, False)
    """
    below = any(found[skill] < bar for skill, bar in stage.bar.items())
    return stage.waits and below and waited < PATIENCE


def own_crops(seed: int, batches: int = 20) -> float:
    """The fraction of the last lessons in which a later image shows the scene of an earlier one, as it would
    if a call were answered with its own crop."""
    found = []
    for step in range(STEPS - batches, STEPS):
        for lesson in lessons(step, STEPS, seed):
            scenes = [shown.scene for shown in lesson.shown]
            found.append(len(set(scenes)) < len(scenes))
    return fmean(found)


def resume(out: Path, stateful: list) -> tuple[int, int]:
    """Load the last saved state into model and optimizers; returns its step, and how many of its steps came
    beyond the schedule."""
    if not (out / "state.pt").exists():
        return 0, 0
    state = torch.load(out / "state.pt", weights_only=True)
    for part, saved in zip(stateful, state["parts"]):
        part.load_state_dict(saved)
    keep_rows(out / "log.jsonl", lambda row: row["step"] <= state["step"])
    print(f"resumed at step {state['step']}")
    return state["step"], state["waited"]


def save(out: Path, stateful: list, step: int, waited: int) -> None:
    """Save the state, at once or not at all."""
    parts = [part.state_dict() for part in stateful]
    torch.save({"parts": parts, "step": step, "waited": waited}, out / "state.tmp")
    (out / "state.tmp").rename(out / "state.pt")


# --------------------------------------------------------------------------------------------------
# What it can do, measured on images that no lesson had.


@torch.no_grad()
def write(model, processor: ZoomProcessor, asked: list[tuple[str, list]], sampled: bool = False) -> list[str]:
    """Continuations of (text, what is shown) conversations, greedy or sampled."""
    tokenizer = processor.tokenizer
    images = [[each.image for each in shown] for _, shown in asked]
    pixels = processor.image_processor([image for some in images for image in some], return_tensors="pt")
    ids = [expand_image_tokens(processor, text, some) for (text, _), some in zip(asked, images)]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    batch["mm_token_type_ids"] = (batch["input_ids"] == processor.image_token_id).int()
    way = {"do_sample": True, "top_k": 0} if sampled else {"do_sample": False}
    written = model.generate(**batch, **pixels, max_new_tokens=40, **way)
    return tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def measure_skills(model, processor: ZoomProcessor, n: int = ASKED, seed: int = 12345) -> dict[str, float]:
    """Every skill, over n fresh images each.

    read, pair, read_large: fractions of letters read in a close-up; alone, as a second image, and huge.
    ground_iou, call_iou: mean IoU with the tile of the boxes that it gives when asked outright, and of those
    that it calls the tool with for a question. first_look_*: fractions correct at first sight ("large": with
    a letter of 140 to 210 px). calls_*: fractions of sampled answers that call the tool.
    """
    return {name: measure_skill(name, model, processor, n, seed) for name in SKILLS}


def measure_skill(name: str, model, processor: ZoomProcessor, n: int, seed: int = 12345) -> float:
    return round(SKILLS[name](model, processor, n, random.Random(seed)), 3)


def measure_bar(model, processor: ZoomProcessor, stage: Stage) -> dict[str, float]:
    """The skills that the stage has a bar for; says which are below."""
    model.eval()
    found = {}
    for name, bar in stage.bar.items():
        found[name] = measure_skill(name, model, processor, ASKED)
        verdict = "reached" if found[name] >= bar else "NOT REACHED"
        print(f"stage {stage.name}: {name} {found[name]}, its bar {bar} {verdict}", flush=True)
    model.train()
    return found


def reading(ease: float, second: bool = False) -> Callable:
    """A measure: the fraction of close-ups whose letter is read."""

    def measure(model, processor, n: int, rng: random.Random) -> float:
        kind = "pair" if second else "read"
        lessons = [draw_lesson(kind, rng, ease, 1) for _ in range(n)]
        # The last six parts are the reply, see `read_parts`.
        asked = [("".join(text for text, _ in each.parts[:-6]), each.shown) for each in lessons]
        said = map(find_answer, write(model, processor, asked))
        return fmean(letter == lesson.parts[-2][0] for letter, lesson in zip(said, lessons))

    return measure


def pointing(question: str, opening: str = "") -> Callable:
    """A measure: the mean IoU of boxes with the tile. opening: of the reply, with the tool on offer."""

    def measure(model, processor, n: int, rng: random.Random) -> float:
        scenes = [random_scene(rng) for _ in range(n)]
        tiles = [rng.choice(scene.tiles) for scene in scenes]
        texts = [tools.prompt(question.format(tile.colour), tool=bool(opening)) + opening for tile in tiles]
        said = write(model, processor, [(text, [look(scene)]) for text, scene in zip(texts, scenes)])
        overlaps = []
        for text, tile in zip(said, tiles):
            inside = (opening + text).partition("[")[2]  # there is a digit in "bbox_2d"
            numbers = [int(digits) for digits in re.findall(r"\d{1,3}", inside)[:4]]
            overlaps.append(iou(numbers, shown_box(tile)) if len(numbers) == 4 else 0.0)
        return fmean(overlaps)

    return measure


def first_look(kind: str, letter: tuple[int, int] | None = None) -> Callable:
    """A measure: the fraction of questions answered correctly without the tool."""
    sized = {"letter_px": letter, "side": (round(1.15 * letter[1]),) * 2} if letter else {}

    def measure(model, processor, n: int, rng: random.Random) -> float:
        questions = [draw_question(rng, kind, **sized) for _ in range(n)]
        asked = [(tools.prompt(each.text, tool=False), [look(each.scene)]) for each in questions]
        said = map(find_answer, write(model, processor, asked))
        return fmean(answer == each.answer for answer, each in zip(said, questions))

    return measure


def calling(kind: str) -> Callable:
    """A measure: the fraction of sampled answers that call the tool."""

    def measure(model, processor, n: int, rng: random.Random) -> float:
        torch.manual_seed(0)
        questions = [draw_question(rng, kind) for _ in range(n)]
        asked = [(tools.prompt(each.text), [look(each.scene)]) for each in questions]
        return fmean("<tool_call>" in said for said in write(model, processor, asked, sampled=True))

    return measure


SKILLS = {
    "read": reading(0.0),
    "pair": reading(0.0, second=True),
    "read_large": reading(0.8),
    "ground_iou": pointing("Where is the {} tile?"),
    "first_look_read": first_look("read"),
    "first_look_compare": first_look("compare"),
    "first_look_glance": first_look("glance"),
    "first_look_large": first_look("read", (LEGIBLE, EVERY_SIZE[1])),
    "call_iou": pointing("What letter is on the {} tile?", tools.CALL_OPENING),
    "calls_read": calling("read"),
    "calls_compare": calling("compare"),
    "calls_glance": calling("glance"),
}


@dataclass(frozen=True)
class BaseConfig:
    """The flags of this script."""

    out: str = flag("runs/base", "for state, log and base")
    steps: int = flag(STEPS, "of all stages together")
    seed: int = flag(0, "of weights and lessons")
    threads: int = flag(2, "no more than free cores")
    lr: float = flag(LR, "of Muon; AdamW's is 0.4 of it")


def main(config: BaseConfig) -> None:
    out = Path(config.out)
    for name, value in train(out, config.steps, config.seed, config.threads, config.lr).items():
        bar = STAGES[-1].bar.get(name)
        print(f"{name:20}{value:.3f}" + (f"  (bar {bar})" if bar else ""))
    base = out / "base"
    print(f"the base is in {base}; to use it as the tiny model: rm -r toy/base && cp -r {base} toy/")


if __name__ == "__main__":
    run_command(main, lambda argv: parse(BaseConfig, argv, __doc__)[0])
