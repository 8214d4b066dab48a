"""The benchmark: it runs, and its arms do the same work."""

import json
import re
import shlex

import torch
from scripts import run_script

from bench import twin
from model import add_lora, load_model


def test_arms_do_the_same_work(tmp_path):
    out = tmp_path / "bench.json"
    arguments = shlex.split("--prompts 2 --group 4 --micro_batch 4 --repeats 1 --threads 1")
    result = run_script("bench.py", *arguments, "--json", out)
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())
    assert set(figures["rollout_vs_trl"]) == {"generate", "slots"} and figures["update_vs_trl"] > 0
    rollouts, updates = figures["figures"]["rollout"], figures["figures"]["update"]
    # Each image once against once a member a turn; each prompt once against once a member.
    distinct = 2 + figures["crops"]
    assert rollouts["slots"]["images"] == rollouts["generate"]["images"] == distinct
    assert (
        rollouts["trl"]["images"] > 8 + figures["crops"] and updates["trl"]["images"] == 8 + figures["crops"]
    )
    # The rollout has seen them
    assert "images" not in updates["slots"] and "images" not in updates["generate"]
    assert rollouts["slots"]["prefill_tokens"] <= rollouts["generate"]["prefill_tokens"]
    assert rollouts["generate"]["prefill_tokens"] < rollouts["trl"]["prefill_tokens"] / 2
    assert updates["generate"]["prefill_tokens"] <= updates["trl"]["prefill_tokens"]
    assert updates["slots"]["prefill_tokens"] < updates["generate"]["prefill_tokens"]
    for name in ("trl", "generate", "slots"):
        assert len(re.findall(rf"^\| {name} +\|", result.stdout, re.M)) == 2


def test_both_arms_stand_on_the_same_weights():
    """And what trains on one leaves the other alone: two 3Bs would not fit a card of 24 GB."""
    model, _ = load_model("tiny")
    other = twin(model)
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert all(one is another for one, another in pairs)
    assert {id(m) for m in model.modules()}.isdisjoint(id(m) for m in other.modules())
    ours = add_lora(model, 4)
    assert not any("lora" in name for name, _ in other.named_parameters())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, other(input_ids=ids).logits)
