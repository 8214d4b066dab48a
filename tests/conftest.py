"""What the tests share: a random tiny model and a scripted policy on top of it."""

import os
import random
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # exactness is that of float32 on a CPU; doctor.py checks a GPU
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pytest
import torch

import rollout
from data import Sample
from fast.slots import SlotEngine
from toy.make_base import make_model, make_processor
from toy.world import random_scene, render

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processor():
    return make_processor()


@pytest.fixture(scope="session")
def model(processor):
    torch.manual_seed(0)
    return make_model(processor.tokenizer).eval()


@pytest.fixture(scope="session")
def pictures():
    """Pictures of different shapes, each of one colour pattern of its own."""
    rng = random.Random(5)
    scenes = [render(random_scene(rng)) for _ in range(3)]
    return [scenes[0], scenes[1].crop((0, 0, 1008, 600)), scenes[2].crop((100, 0, 500, 1000))]


@pytest.fixture(scope="session")
def samples(pictures):
    return [
        Sample(
            id=f"s{i}",
            image=picture,
            question=f"What letter is on the {c} tile?",
            answer="A",
            boxes=((300.0, 300.0, 390.0, 390.0),),
            meta={"kind": "read"},
        )
        for i, (picture, c) in enumerate(zip(pictures, ("red", "green", "blue")))
    ]


def call(*box, name="image_zoom_in_tool") -> str:
    numbers = ",".join(map(str, box))
    return (
        f'<tool_call>{{"name": "{name}", "arguments": {{"bbox_2d": [{numbers}]}}}}</tool_call>'
    )


@pytest.fixture
def script(monkeypatch, processor):
    """script(turns): replaces the sampling of both engines by what `turns(rng)` returns for each row's next
    turn; logprobs stay the model's own.

    A turn is a text; without a closing </tool_call> it is ended by <|im_end|>, unless it is a list of ids,
    taken as it is.
    """
    plain = rollout.SamplingTape

    def to_ids(turn):
        if isinstance(turn, list):
            return turn
        turn += "" if turn.endswith("</tool_call>") else "<|im_end|>"
        return processor.tokenizer(turn, add_special_tokens=False)["input_ids"]

    def install(turns):
        rng, plans = random.Random(0), {}

        class ScriptedTape(plain):
            plan = None

            def __call__(self, input_ids, scores):
                scores = super().__call__(input_ids, scores)
                if self.plan is None:
                    self.plan, self.step = [to_ids(turns(rng)) for _ in range(len(scores))], 0
                forced = torch.full_like(scores, -torch.inf)
                for row, ids in enumerate(self.plan):
                    forced[row, ids[min(self.step, len(ids) - 1)]] = 0.0
                self.step += 1
                return forced

        def choose(engine, scores):
            tokens = []
            for slot in engine.live:
                trajectory = engine.episodes.trajectories[slot.trajectory]
                key = id(trajectory), len(trajectory.turns)
                if key not in plans:
                    plans[key] = (
                        trajectory,
                        to_ids(turns(rng)),
                    )  # kept, so that its id stays taken
                ids = plans[key][1]
                tokens.append(ids[min(slot.written, len(ids) - 1)])
            return torch.tensor(tokens)

        monkeypatch.setattr(rollout, "SamplingTape", ScriptedTape)
        monkeypatch.setattr(SlotEngine, "choose", choose)

    return install
