"""Qwen3's real vocabulary. It is large, so it isn't here; left out unless asked for. QWEN3_TOKENIZER names a
folder with the tokenizer.json and tokenizer_config.json of a public Qwen3 model:

    QWEN3_TOKENIZER=FOLDER .venv/bin/pytest -m vocabulary -n 0 tests/test_vocabulary.py
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import PREPROCESSOR

import tools
from data import load
from engine.families import CONFIGS
from model import load_model, load_processor
from rollout import rollout
from tools import TURN_ENDS
from train import policy_logprobs

pytestmark = pytest.mark.vocabulary
ADDED = (151667, 151668)  # <think>, </think>


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The 2B's small files in the Hub's layout."""
    folder = tmp_path_factory.mktemp("qwen3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(os.environ["QWEN3_TOKENIZER"]) / name, folder)
    shutil.copy(CONFIGS["qwen3-vl-2b"], folder / "config.json")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def test_think_is_plain_text_and_calls_are_tokens(folder):
    tokenizer = load_processor(folder).tokenizer
    spoken = "<think>I look.</think>\n<tool_call>{}</tool_call><|im_end|>\n<tool_response>"
    ids = tokenizer(spoken, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(ADDED)
    assert tokenizer.decode(ids) == spoken
    words = ("<tool_call>", "</tool_call>", "<tool_response>", "<|im_end|>", "<|image_pad|>")
    assert tokenizer.convert_tokens_to_ids(words) == [151657, 151658, 151665, 151645, 151655]
    assert all(end in tokenizer.get_vocab() for end in TURN_ENDS)
    for text in (tools.TOOL_SYSTEM, tools.PLAIN_SYSTEM, tools.observation(), tools.prompt("Which?")):
        assert not set(tokenizer(text, add_special_tokens=False)["input_ids"]) & set(ADDED)


def test_both_engines_at_the_widths_of_the_2b(folder):
    """Random weights, two layers a tower: the sampler's logprobs are those of an uncached forward pass."""
    model, processor = load_model(str(folder), random_weights=True, layers=2, lora=4)
    limits = {"look_pixels": 65536, "crop_pixels": 65536, "max_turn_tokens": 24, "max_tokens": 600}
    samples = load("toy", split="test", limit=2)
    for engine in ("generate", "slots"):
        trajectories = rollout(
            model, processor, samples, group=2, seed=0, engine=engine, keep_features=True, **limits
        )
        for trajectory in trajectories:
            assert not set(trajectory.prompt_ids) & set(ADDED)
        groups = [trajectories[:2], trajectories[2:]]
        logprobs, _, sampled = policy_logprobs(model, processor, sum(groups, []), 1.0)
        for row, mask, trajectory in zip(logprobs, sampled, trajectories):
            own = torch.tensor([lp for lp, kept in zip(trajectory.logprobs, trajectory.sampled) if kept])
            assert (row[mask].detach() - own).abs().max() < 1e-4
