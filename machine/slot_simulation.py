"""How full the slots are on a real model's lengths: the engine's own loop, without a model. Counts, no times.
`python bench.py --simulate --model qwen2.5-vl-3b` prints them."""

import random
from dataclasses import dataclass, field
from statistics import fmean
from types import SimpleNamespace
from unittest.mock import patch

import torch

from engine import slots
from engine.families import head_size
from engine.slots import GROWTH, Chunk, SlotEngine
from machine.memory_estimate import GB, sizes
from runlog.tables import table

QUESTIONS = 16
GROUP = 8
SLOTS = 48
PROMPT = 1300  # tokens: a first look of 1,000 tokens, the tool prompt, a question
THOUGHT = (30, 150)  # tokens of a turn
CROP = (100, 400)  # tokens of a crop
SEEDS = 10
TITLES = [
    "zooms", "slots wait for", "decode steps", "in use", "waiting", "under a quarter in use",
    "GB a step: now", "by rows", "needed", "graphs by rows",
]  # fmt: skip
PHASES = {"early": (0.67, 0.28, 0.05), "late": (0.05, 0.75, 0.20)}  # fractions with no zoom, one, two


class PlannedEnv:
    """What the engine asks of `ZoomEnv`, of trajectories that are mere lengths."""

    def __init__(self, zooms: tuple[float, ...], group: int, seed: int):
        self.zooms = zooms
        self.group = group
        self.seed = seed
        self.trajectories = []

    def reset(self, sample, opening) -> list[int]:
        first = len(self.trajectories)
        numbers = list(range(first, first + self.group))
        for number in numbers:
            lengths = random.Random(f"{self.seed}-{number}")
            (zooms,) = lengths.choices(range(len(self.zooms)), self.zooms)
            turns = [lengths.randint(*THOUGHT) for _ in range(zooms + 1)]
            crops = [lengths.randint(*CROP) for _ in range(zooms)]
            planned = {"prompt_ids": [0] * PROMPT, "completion_ids": [], "images": [], "features": []}
            self.trajectories.append(SimpleNamespace(**planned, turns=turns, crops=crops))
        return numbers

    def tokens_left(self, i: int) -> int:
        return self.trajectories[i].turns.pop(0)

    def step(self, i: int, tokens, logprobs) -> Chunk | None:
        crops = self.trajectories[i].crops
        return Chunk([0] * crops.pop(0), []) if crops else None

    def keep_features(self, numbers, features) -> None:
        pass


@dataclass
class Counted:
    """Sums over the decode steps of a rollout."""

    steps: int = 0
    in_use: int = 0
    waiting: int = 0
    sparse: int = 0  # steps with under a quarter of the slots in use
    needed: int = 0  # keys and values that the live slots have, in tokens
    now: int = 0  # that the graph over all slots and all room reads
    by_rows: int = 0  # that a graph over a power of two of rows would read, with the room at hand
    graphs: set = field(default_factory=set)  # (rows, room) of those


class CountingEngine(SlotEngine):
    """The engine's loop over a plan: what is computed is counted."""

    def __init__(self, env: PlannedEnv, slots: int):
        self.env = env
        self.size = slots
        self.live = []
        self.cache = SimpleNamespace(copy=lambda *given: None)
        self.logits = self.ids = self.logprobs = torch.zeros(slots, 1)
        self.end_ids = torch.tensor([1])
        self.counted = Counted()
        self.capacity = 0

    def counters(self):
        return None, None, None

    def next_tokens(self, written) -> torch.Tensor:
        return torch.zeros(len(self.live))  # no end: turns end by their planned length

    def append(self, rows, chunks) -> None:
        for row, chunk in zip(rows, chunks):
            self.live[row].length += len(chunk.ids)

    def decode(self, tokens, lengths, positions) -> torch.Tensor:
        seen = self.counted
        live = len(self.live)
        end = max(slot.length for slot in self.live) + 1
        room = -(-end // GROWTH) * GROWTH
        rows = min(self.size, 1 << (live - 1).bit_length())
        self.capacity = max(self.capacity, room)
        seen.steps += 1
        seen.in_use += live
        seen.waiting += sum(slot.waiting for slot in self.live)
        seen.sparse += live < self.size / 4
        seen.needed += sum(slot.length for slot in self.live)
        seen.now += self.size * self.capacity
        seen.by_rows += rows * room
        seen.graphs.add((rows, room))
        return torch.zeros(live, 1)


def run_once(zooms: tuple[float, ...], fraction: float, seed: int) -> Counted:
    """A rollout's counts. fraction: of the slots that waits before observations go in."""
    engine = CountingEngine(PlannedEnv(zooms, GROUP, seed), SLOTS)
    with patch.object(slots, "WAITING_FRACTION", fraction):
        engine.run([None] * QUESTIONS, [[]] * QUESTIONS)
    return engine.counted


def simulate(model_config) -> str:
    """A table of rollouts by the engine's rules, with other fractions of waiting slots: means of SEEDS."""
    text = model_config.get_text_config()
    token_bytes = 4 * text.num_hidden_layers * text.num_key_value_heads * head_size(text)  # in bfloat16
    count = sizes(model_config)
    weights = 2 * (count["matrices"] + count["embeddings"])
    rows = [TITLES]
    for phase, zooms in PHASES.items():
        for fraction in sorted({1 / 8, slots.WAITING_FRACTION, 1 / 2}):
            runs = [run_once(zooms, fraction, seed) for seed in range(SEEDS)]

            def mean(name, runs=runs) -> float:
                return fmean(getattr(run, name) for run in runs)

            steps = mean("steps")
            shares = [mean("in_use") / SLOTS, mean("waiting") / SLOTS, mean("sparse")]
            tokens = [mean("now"), mean("by_rows"), mean("needed")]
            row = [phase, f"1/{1 / fraction:.0f}", f"{steps:.0f}"]
            row += [f"{100 * share / steps:.0f} %" for share in shares]
            row += [f"{(weights + read / steps * token_bytes) / GB:.1f}" for read in tokens]
            graphs = fmean(len(run.graphs) for run in runs)
            rows.append([*row, f"{graphs:.0f}"])
    return table(rows)
