"""The trainer: exact on scripted trajectories, and the real commands on the toy."""

import copy
import json
import os
import random
import re
import shlex
import signal
import time
from collections import Counter
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, both_families, call, make_tiny_model
from PIL import Image
from scripts import Told, run_script
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from trl import GRPOTrainer

import reward
import train
from bench import stock_batch
from config import TrainConfig
from data import Sample, load
from engine import slots
from engine.shared_prefix import shared_prefix_logprobs
from model import load_model
from reward import group_advantages
from rollout import Trajectory
from safe.checkpoints import IMAGES, newest_whole
from training.settle import read_config
from training.shutdown import last_line


def random_turn(rng: random.Random) -> str:
    x, y = rng.randint(0, 60), rng.randint(0, 50)
    return rng.choice(
        [
            call(x, y, x + rng.randint(14, 50), y + rng.randint(14, 60)),
            call(5, 5, 100, 100),
            call(9, 9, 2, 2),
            "<think> red=A</think><answer>A</answer>",
            "<think> red=X</think><answer>X</answer>",
            "<think> hm</think>",
        ]
    )


@pytest.fixture
def build(family, processor, tmp_path):
    """build(flag=value, ...): a trainer on a fresh random tiny model. trl: settings of TRL's own."""

    def make(trl=None, kind=train.ZoomGRPOTrainer, **flags):
        torch.manual_seed(0)
        defaults = dict(
            prompts=3,
            group=4,
            micro_batch=6,
            steps=2,
            lr=1e-2,
            seed=1,
            max_turns=4,
            save_every=100,
            threads=1,  # one process: what is counted here is all there is
        )
        config = train.TrainConfig(**defaults | flags)
        trainer = train.build_trainer(
            config,
            make_tiny_model(family, processor.tokenizer),
            processor,
            load("toy", limit=6),
            tmp_path,
            trl=trl or {},
        )
        trainer.__class__ = kind
        return trainer

    return make


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_explained(rows: list[dict]) -> None:
    """docs/metrics.md has every key by its own name; those of one kind of question by KIND."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    names = {re.sub("_(read|compare|glance)$", "_KIND", name) for row in rows for name in row}
    assert "accuracy_KIND" in names
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


class StockLoss(train.ZoomGRPOTrainer):
    """The oracle: TRL's own loss on our trajectories, over padded batches, from pixels."""

    def compute_loss(self, model, groups, return_outputs=False, num_items_in_batch=None, whole=None):
        members = [trajectory for group in groups for trajectory in group]
        batch = stock_batch(members, self.processing_class, model.device)
        batch["num_items_in_batch"] = torch.tensor(self.step_tokens)
        if self.num_iterations > 1:
            if members[0].old_logprobs is None:
                for trajectory, row in zip(members, self.stock_logprobs(model, batch)):
                    trajectory.old_logprobs = row[: len(trajectory.sampled)]
            old_logprobs = pad_sequence([t.old_logprobs for t in members], batch_first=True)
            batch["old_per_token_logps"] = old_logprobs
        if self.beta:
            with self.model.disable_adapter():
                batch["ref_per_token_logps"] = self.stock_logprobs(model, batch)
        return GRPOTrainer.compute_loss(self, model, batch)

    @torch.no_grad()
    def stock_logprobs(self, model, batch):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
        kept = batch["completion_ids"].shape[1]
        more = {name: batch[name] for name in names}
        return self._get_per_token_logps_and_entropies(model, ids, mask, kept, **more)[0]


def for_families(all_flags: list[dict], some: list[int]):
    """All these flags for Qwen2.5-VL, and those of these numbers for Qwen3-VL."""
    cases = [("qwen2_5_vl", flags) for flags in all_flags]
    cases += [("qwen3_vl", all_flags[number]) for number in some]
    return pytest.mark.parametrize(("family", "flags"), cases, indirect=["family"])


FLAGS = [
    {},
    {"micro_batch": 12},
    {"micro_batch": 1},
    {"beta": 0.04},
    {"loss_type": "dr_grpo"},
    {"engine": "generate"},
]


@for_families(FLAGS, [0, 2, 5])
def test_trainer_logprobs_equal_the_samplers(build, script, tmp_path, flags):
    """Recomputed for the update, at step 2 with LoRA weights that are not zero."""
    script(random_turn)
    trainer = build(**flags)
    trainer.train()
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["logp_gap"] for row in rows) < 1e-4
    assert rows[0]["delivered"] > 0 and rows[0]["errors"] > 0 and rows[0]["grad_norm"] > 0
    changed = [p.abs().sum() for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert all(changed) and not any(
        p.requires_grad for name, p in trainer.model.named_parameters() if "visual" in name
    )


def disturb(trainer) -> None:
    """LoRA weights that are not zero, the same for every trainer."""
    random = torch.Generator().manual_seed(5)
    for _, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=random)


def gradients(trainer) -> dict[str, torch.Tensor]:
    """Every LoRA tensor's gradient, summed over all micro-batches and steps of a run."""
    total = Counter()
    disturb(trainer)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda g, name=name: total.update({name: g}))
    trainer.train()
    return total


def assert_equal(some: dict, others: dict, tolerance: float):
    assert set(some) == set(others) and all(g.norm() > 0 for g in others.values())
    for name, gradient in others.items():
        assert (some[name] - gradient).norm() < tolerance * gradient.norm(), name


LOSSES = [
    {},
    {"micro_batch": 12},  # all groups in one micro-batch
    {"micro_batch": 2},  # parts of groups
    {"loss_type": "grpo"},
    {"loss_type": "bnpo", "temperature": 0.7},
    {"loss_type": "dr_grpo", "trl": {"gradient_checkpointing": True}},
    {"beta": 0.04},
    {"beta": 0.04, "loss_type": "grpo", "micro_batch": 3},
    {"iterations": 2, "clip_high": 0.28},
    {"iterations": 2, "beta": 0.04, "loss_type": "bnpo", "micro_batch": 4},
    {"iterations": 2, "loss_type": "dr_grpo", "advantage": "mean"},
]


@pytest.mark.parametrize("engine", ["slots", "generate"])
@for_families(LOSSES, [1, 2, 5, 7, 9])
def test_training_is_trls(build, script, engine, flags):
    """Gradients and losses of whole runs, accumulation and iterations included, against TRL's own loss on the
    same trajectories: groups of unequal lengths, members with and without zooms. For both forward passes of
    the update, the plain one and the one that shares prompts."""
    results, losses = [], []
    for kind in (train.ZoomGRPOTrainer, StockLoss):
        script(random_turn)
        # lr: above zero where the second iteration must differ from the first
        run = {"steps": 4, "lr": 1e-4} if "iterations" in flags else {"steps": 1, "lr": 0.0}
        trainer = build(kind=kind, engine=engine, **run | flags)
        results.append(gradients(trainer))
        losses.append([row["loss"] for row in trainer.rows])
    assert_equal(*results, 1e-5)
    assert len(losses[0]) == run["steps"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)  # written with five digits


@pytest.mark.parametrize("engine", ["slots", "generate"])
@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_the_loss_is_trls_far_from_the_old_policy(build, script, loss_type, beta, engine):
    """Old logprobs so far away that both clips are at work: losses to 1e-6, LoRA gradients to 1e-5."""
    script(random_turn)
    flags = {"loss_type": loss_type, "beta": beta, "engine": engine}
    trainer = build(clip_high=0.28, iterations=2, micro_batch=6, **flags)
    disturb(trainer)
    trainer.state.global_step = 1  # nothing for the page
    trainer.current_gradient_accumulation_steps = 2
    groups = trainer.sample_groups(trainer.samples[:3])
    random = torch.Generator().manual_seed(7)
    clipped = 0
    for t in [t for group in groups for t in group]:
        noise = 0.4 * torch.randn(len(t.sampled), generator=random)
        t.old_logprobs = torch.tensor(t.logprobs) + noise
        ratio = (-noise).exp()
        clipped += ((ratio > 1.28) & (t.advantage > 0) | (ratio < 0.8) & (t.advantage < 0)).sum()
    oracle = copy.copy(trainer)
    oracle.__class__ = StockLoss
    losses = {}
    grads = {}
    for name, each in (("ours", trainer), ("trl", oracle)):
        trainer.model.zero_grad()
        losses[name] = []
        for part in train.split_groups(groups, 6):
            loss = each.compute_loss(trainer.model, part)
            loss.backward()
            losses[name].append(loss.item())
        grads[name] = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert clipped > 5
    assert losses["ours"] == pytest.approx(losses["trl"], abs=1e-6)
    assert_equal(grads["ours"], grads["trl"], 1e-5)


def test_split_groups_keeps_members_together():
    groups = [[f"{g}{m}" for m in range(4)] for g in "abc"]
    for size in (1, 2, 3, 4, 6, 12):
        parts = train.split_groups(groups, size)
        assert [m for part in parts for group in part for m in group] == [m for g in groups for m in g]
        assert all(sum(map(len, part)) == size for part in parts)
        assert all(len({m[0] for m in group}) == 1 for part in parts for group in part)
        assert all(len({group[0][0] for group in part}) == len(part) for part in parts)


@pytest.mark.parametrize("scale", ["std", "mean"])
def test_advantages_are_trls(scale):
    """By the formula of TRL's rewards, with torch."""
    totals = [2.0, 0.8, 0.0, -0.2, 0.0]
    rewards = torch.tensor(totals)
    wanted = rewards - rewards.mean()
    wanted = wanted / (rewards.std() + 1e-4) if scale == "std" else wanted
    assert group_advantages(totals, scale) == pytest.approx(wanted.tolist(), abs=1e-6)
    assert max(map(abs, group_advantages([0.8] * 8, scale))) < 1e-9


def test_the_page_shows_the_advantages_that_train(build, script, tmp_path, monkeypatch):
    """Those of a stored group are those that reach the loss, for both ways of taking them."""
    for kind in ("std", "mean"):
        script(random_turn)
        trainer = build(steps=1, prompts=1, group=6, micro_batch=6, advantage=kind, show_every=1)
        seen, plain = [], trainer.compute_loss

        def spy(model, groups, *args, seen=seen, plain=plain, **more):
            seen += [t.advantage for group in groups for t in group]
            return plain(model, groups, *args, **more)

        monkeypatch.setattr(trainer, "compute_loss", spy)
        (tmp_path / "trajectories.jsonl").unlink(missing_ok=True)
        trainer.train()
        rows = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
        shown = sorted(row["advantage"] for row in rows if not row["probe"])
        assert len(set(shown)) > 1 and shown == pytest.approx(sorted(seen))


def test_formulas_are_compared_in_training(build, script, tmp_path):
    """math-verify keeps its time by a signal, which works in the main thread alone: there all are scored."""
    sample = Sample("1", Image.new("RGB", (200, 200)), "How much?", r"\frac{1}{2}", tool=False)
    said = iter([r"\boxed{0.5}", r"\boxed{\frac{2}{4}}", r"\boxed{\frac{1}{2}}", r"\boxed{3}"])
    script(lambda rng: next(said))
    trainer = build(steps=1, group=4)
    (group,) = trainer.sample_groups([sample])
    assert sorted(t.reward.accuracy for t in group) == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("engine", ["slots", "generate"])
def test_trajectories_without_an_advantage_are_not_computed(build, script, monkeypatch, engine):
    """A dead group costs nothing, and its absence changes neither loss nor gradients."""
    results, computed = [], []
    shared = train.shared_prefix_logprobs
    plain = train.policy_logprobs

    def spy_on_shared(model, groups, temperature):
        computed.append(sum(map(len, groups)))
        return shared(model, groups, temperature)

    def spy_on_plain(model, processor, trajectories, temperature):
        computed.append(len(trajectories))
        return plain(model, processor, trajectories, temperature)

    monkeypatch.setattr(train, "shared_prefix_logprobs", spy_on_shared)
    monkeypatch.setattr(train, "policy_logprobs", spy_on_plain)

    def policy(rng):  # the first group always fails alike, the others differ
        policy.asked += 1
        return "<think> hm</think>" if policy.asked <= 4 else random_turn(rng)

    for kind in (train.ZoomGRPOTrainer, StockLoss):
        policy.asked = 0
        script(policy)
        results.append(gradients(build(steps=1, lr=0.0, kind=kind, micro_batch=4, engine=engine)))
    assert_equal(*results, 1e-5)
    assert 0 < sum(computed) <= 9  # one of the dead group's four rows, the others as they are


def test_two_images_of_one_question_are_two_groups(build, script):
    """The same prompt ids, but another image: not one group."""
    same = [replace(sample, question="What letter is on the red tile?") for sample in load("toy", limit=6)]
    results = []
    for kind in (train.ZoomGRPOTrainer, StockLoss):
        script(random_turn)
        trainer = build(steps=1, lr=0.0, kind=kind)
        trainer.samples = same
        results.append(gradients(trainer))
    assert_equal(*results, 1e-5)


def sampled_groups(trainer) -> list[list[Trajectory]]:
    """Three groups under LoRA weights that are not zero."""
    disturb(trainer)
    trainer.state.global_step = 1  # nothing for the page
    return trainer.sample_groups(trainer.samples[:3])


@both_families
@pytest.mark.parametrize("engine", ["slots", "generate"])
def test_only_sampled_tokens_move_the_policy(build, script, engine):
    """Observations carry no loss: the mask covers exactly the sampled ids; logprobs elsewhere are zero."""
    script(random_turn)
    trainer = build(engine=engine)
    groups = sampled_groups(trainer)
    logprobs, entropies, mask = trainer.logprobs_of(trainer.model, groups)
    for t, row, own in zip([t for group in groups for t in group], mask, logprobs):
        assert row[: len(t.sampled)].int().tolist() == t.sampled and not row[len(t.sampled) :].any()
        assert own[: len(t.logprobs)].tolist() == pytest.approx(t.logprobs, abs=1e-4)
    assert not logprobs[~mask].any() and not entropies[~mask].any()


@both_families
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_plain_forward_pass_and_the_shared_one_are_equal(build, script, temperature):
    """Logprobs, entropies and mask to 1e-5, and what they send back to the LoRA; parts of groups, whose
    completions are of unequal lengths."""
    script(random_turn)
    trainer = build()
    first, second, third = sampled_groups(trainer)
    groups = [first, second[:1], third[1:]]
    members = [trajectory for group in groups for trajectory in group]
    assert len({len(t.completion_ids) for t in members}) > 3
    assert {len(t.images) for t in members} > {1, 2}
    found = {}
    grads = {}
    for name in ("shared", "plain"):
        trainer.model.zero_grad()
        if name == "shared":
            found[name] = shared_prefix_logprobs(trainer.model, groups, temperature)
        else:
            processor = trainer.processing_class
            found[name] = train.policy_logprobs(trainer.model, processor, members, temperature)
        logprobs, _, mask = found[name]
        weights = torch.linspace(-1, 1, mask.sum().item())  # each token counts, and no two alike
        (logprobs[mask] * weights).sum().backward()
        grads[name] = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    (logprobs, entropies, mask), (plain_logprobs, plain_entropies, plain_mask) = found.values()
    assert torch.equal(mask, plain_mask) and mask.any()
    assert (logprobs - plain_logprobs).abs().max() < 1e-5
    assert (entropies - plain_entropies).abs().max() < 1e-5
    assert entropies[mask].min() > 0 and logprobs[mask].max() < 0
    assert_equal(grads["shared"], grads["plain"], 1e-5)


@both_families
@pytest.mark.parametrize("engine", ["slots", "generate"])
def test_every_image_is_opened_and_seen_once_a_step(build, script, engine):
    """By the rollout; the update takes its features, and sends nothing back through the vision tower."""
    script(random_turn)
    trainer = build(steps=1, engine=engine)
    counts = Counter()
    visual = trainer.model.get_base_model().model.visual
    visual.register_forward_pre_hook(
        lambda _, args, kwargs: counts.update(seen=len(kwargs["grid_thw"])), with_kwargs=True
    )
    visual.blocks[0].register_full_backward_hook(lambda *a: counts.update(vision_backward=1))
    trainer.model.get_base_model().model.language_model.layers[0].register_full_backward_hook(
        lambda *a: counts.update(text_backward=1)
    )
    trainer.store_for_page = lambda *a: None  # it asks probe questions

    def drawn(sample):
        counts.update(opened=1)
        return sample.open()

    trainer.samples = [replace(sample, image=partial(drawn, sample)) for sample in trainer.samples]
    images, plain = set(), trainer.sample_groups

    def note(chosen):
        groups = plain(chosen)
        images.update(id(image) for group in groups for t in group for image in t.images)
        return groups

    trainer.sample_groups = note
    trainer.train()
    assert counts["opened"] == 3
    assert counts["seen"] == len(images) > 3 and counts["text_backward"] > 0 == counts["vision_backward"]


def test_the_bonus_is_the_flags(build, script, tmp_path):
    script(lambda rng: random_turn(rng) if rng.random() < 0.5 else call(10, 10, 60, 60))
    build(steps=1, bonus="unconditional", max_turns=2).train()
    row = metrics(tmp_path)[0]
    assert row["reward_tool"] == pytest.approx(1.2 * row["tool_rate"])


TERMS = ("reward_accuracy", "reward_format", "reward_tool", "reward_price", "reward_curiosity")


@pytest.mark.parametrize("bonus", ["none", "conditional"])
@pytest.mark.parametrize("crop_price_on", ["right", "all"])
def test_the_terms_of_the_reward_add_up(build, script, tmp_path, bonus, crop_price_on):
    """With a price on crops: of correct answers or of all, beside any bonus."""
    script(lambda rng: random_turn(rng) if rng.random() < 0.5 else call(10, 10, 60, 60))
    price = {"crop_price": 0.3, "crop_price_on": crop_price_on}
    trainer = build(steps=1, prompts=6, bonus=bonus, max_turns=3, **price)
    trainer.samples = [replace(sample, answer="A", options=()) for sample in trainer.samples]
    groups = []
    plain = trainer.sample_groups
    trainer.sample_groups = lambda samples: groups.extend(plain(samples)) or groups
    trainer.train()
    (row,) = metrics(tmp_path)
    assert row["reward"] == pytest.approx(sum(row[term] for term in TERMS), abs=1e-4)
    members = [t for group in groups for t in group]
    correct = [t for t in members if t.reward.accuracy]
    paying = members if crop_price_on == "all" else correct
    assert 0 < sum(t.delivered for t in correct) < sum(t.delivered for t in members)
    paid = 0.3 * sum(t.delivered for t in paying) / len(members)
    assert row["reward_price"] == pytest.approx(-paid, abs=1e-4) and paid > 0
    zoomed = [t for t in correct if t.delivered] if bonus == "conditional" else []
    assert row["reward_tool"] == pytest.approx(1.2 * len(zoomed) / len(members), abs=1e-4)
    assert (row["reward_tool"] > 0) == (bonus == "conditional")


@pytest.mark.parametrize("often", [0.27, 0.9])
def test_curiosity_pays_while_few_zoom(build, script, tmp_path, often):
    """For each trajectory with a crop, right or wrong; and nothing once 30 % of a step zoom."""
    script(lambda rng: call(10, 10, 60, 60) if rng.random() < often else "<answer>A</answer>")
    build(steps=1, prompts=6, bonus="none", max_turns=2, curiosity=0.5).train()
    (row,) = metrics(tmp_path)
    assert row["tool_rate"] > 0 and (row["tool_rate"] < 0.3) == (often < 0.3)
    assert row["reward_curiosity"] == pytest.approx(0.5 * row["tool_rate"] if often < 0.3 else 0.0, abs=1e-4)
    assert row["reward"] == pytest.approx(sum(row[term] for term in TERMS), abs=1e-4)


def test_the_price_may_come_later(build, script, monkeypatch):
    """Until then crops cost nothing."""
    script(random_turn)
    paid = []

    def score(trajectory, **settings):
        paid.append((settings["bonus"], settings["crop_price"]))
        return reward.score(trajectory, **settings)

    monkeypatch.setattr(train, "score", score)
    trainer = build(steps=3, bonus="none", crop_price=0.3, price_from=2)
    trainer.probes = []
    trainer.train()
    assert paid == [("none", 0.0)] * 24 + [("none", 0.3)] * 12  # 3 groups of 4


def test_an_unknown_loss_type_is_an_error(build, script):
    """Not silently another one, neither here nor in the flags: see `test_bad_flags_end_in_one_clear_line`."""
    script(random_turn)
    trainer = build(steps=1)
    trainer.loss_type = "mine"
    with pytest.raises(ValueError, match="--loss_type mine has no branch in `average`"):
        trainer.train()


@pytest.mark.parametrize("tool", ["off", "blank"])
def test_training_without_a_tool_and_with_blank_crops(build, script, tmp_path, tool):
    """The same update on other trajectories: text alone, or calls that are answered with grey."""
    script(lambda rng: random_turn(rng) if rng.random() < 0.5 else call(10, 10, 60, 60))
    seen = []
    trainer = build(steps=2, tool=tool)
    sample_groups = trainer.sample_groups

    def keep(samples):
        groups = sample_groups(samples)
        seen.extend(t for group in groups for t in group)
        return groups

    trainer.sample_groups = keep
    trainer.train()
    crops = [image for t in seen for image in t.images[1:]]
    first, second = metrics(tmp_path)
    assert max(first["logp_gap"], second["logp_gap"]) < 1e-4
    if tool == "off":
        assert not crops and first["tool_rate"] is None  # no collapse to warn of
        decode = trainer.processing_class.decode
        assert not any("image_zoom_in_tool" in decode(t.prompt_ids) for t in seen)
    else:
        assert crops and all(len(image.getcolors()) == 1 for image in crops)


# --------------------------------------------------------------------------------------------------
# The real commands.

SMALL = [
    "--prompts",
    "2",
    "--group",
    "4",
    "--micro_batch",
    "8",
    "--eval_size",
    "6",
    "--threads",
    "1",
]


def run(*arguments, **kwargs):
    return run_script("train.py", *arguments, **kwargs)


def test_the_main_job_in_small(tmp_path):
    out = tmp_path / "run"
    result = run("--out", out, "--steps", 3, *SMALL)
    assert result.returncode == 0, result.stderr
    rows = metrics(out)
    check_explained(rows)
    keys = {
        "step",
        "reward",
        "accuracy",
        "format",
        "tool_rate",
        "calls",
        "delivered",
        "errors",
        "iou",
        "acc_zoom",
        "acc_no_zoom",
        "tokens",
        "dead_groups",
        "entropy",
        "logp_gap",
        "sec_rollout",
        "sec_train",
    }
    assert [row["step"] for row in rows] == [1, 2, 3] and all(keys <= set(row) for row in rows)
    assert max(row["logp_gap"] for row in rows) < 1e-4
    scores = json.loads((out / "eval.json").read_text())
    arms = {"on", "off", "blank", "random", "swap", "oracle", "forced"}
    assert set(scores["after"]) == arms and set(scores["paired"]) == {"on", "off", "forced"}
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6 * (3 + len(arms))
    assert scores["after"]["on"]["all"]["n"] == 6 and scores["after"]["off"]["all"]["tool_rate"] == 0
    assert (out / "curves.png").stat().st_size > 10_000
    # What it says at the start, and at each step
    assert (out / "report.html").as_uri() in result.stdout.split("reward")[0]
    assert "min left" in result.stdout
    drawn = sum(file.stat().st_size for file in (out / "pictures").iterdir())
    assert 0 < drawn < IMAGES
    assert len(re.findall(r"^step +\d+/3 ", result.stdout, re.M)) == 3 and "after: oracle" in result.stdout
    scores["after"].pop("oracle")  # as if it had been killed while it was being scored
    (out / "eval.json").write_text(json.dumps(scores))
    resumed = run("--out", out, "--resume")
    assert resumed.returncode == 0 and metrics(out) == rows and "oracle: 6 questions" in resumed.stdout
    assert "oracle" in json.loads((out / "eval.json").read_text())["after"]
    back = run("--out", out, "--resume", "--steps", 2)
    assert back.returncode == 2 and "would go back" in back.stderr
    again = run("--out", out, "--steps", 3, *SMALL)  # a finished run is not overwritten
    assert again.returncode == 2 and "--resume" in again.stderr


def test_killed_at_a_random_moment_and_resumed(tmp_path):
    """SIGKILL twice; after the resume every step is there once, and what was done before the kill is kept."""
    out, steps = tmp_path / "run", 8
    arguments, kept, rng = (
        ["--out", out, "--steps", steps, *SMALL],
        [],
        random.Random(time.time()),
    )
    for kill_at in (2, 5):
        process = Told("train.py", *arguments)
        for line in process.stdout:
            if line.startswith(f"step    {kill_at}/"):
                time.sleep(rng.uniform(0, 0.8))
                os.killpg(process.pid, signal.SIGKILL)
                break
        process.wait()
        checkpoint = newest_whole(out)
        reached = int(checkpoint.name.split("-")[1])
        assert reached >= kill_at - 1  # no step lost but the running one
        kept.append((reached, metrics(out)[:reached]))
        (out / "metrics.jsonl").open("a").write('{"step": 99, "rew')  # a line cut short by the kill
        arguments = ["--out", out, "--resume"]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for reached, before in kept:
        assert rows[:reached] == before
    assert "after" in json.loads((out / "eval.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stepz", "3"], "unrecognized arguments|--stepz"),
        (["--learning_rate", "1"], "did you mean --lr?"),
        (["--stesp=3"], "did you mean --steps?"),
        (["--nonsense"], "see --help"),
        (["--steps", "many"], "invalid int value"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--group", "1"], "--group must be at least 2"),
        (["--micro_batch", "7"], "must divide"),
        (["--bonus", "huge"], "invalid choice: 'huge'"),
        (["--bonus", "priced"], "invalid choice: 'priced'"),
        (["--loss_type", "mine"], "invalid choice: 'mine'"),
        (["--call_price", "0.1"], "now it is --crop_price"),
        (["--merge"], "now it is python model.py CHECKPOINT --out FOLDER"),
        (["--tool", "random"], "invalid choice: 'random'"),
        (["--data", "toy:tiles=9"], "no range within 2 and 6"),
        (["--temperature", "0"], "--temperature"),
        (["--lr-schedule", "cosine"], "invalid choice: 'cosine'"),
        (["--model", "qwen9"], "unknown model 'qwen9'"),
        (["--model", "tests"], "holds no model"),
        (["--data", "toyz"], "unknown data set 'toyz'"),
        (["--out", "/proc/nowhere"], "can't write to the run folder"),
        (["--resume", "--lr", "1"], "--resume goes on with the run in --out"),
    ],
)
def test_bad_flags_end_in_one_clear_line(arguments, message, here):
    result = here("train.py", *arguments)
    lines = [line for line in result.stderr.splitlines() if "gemm_4bit" not in line]
    assert result.returncode == 2 and len(lines) == 1 and re.search(message, lines[0]), result.stderr
    assert "Traceback" not in result.stderr


def test_help_explains_every_flag():
    text = run("--help").stdout
    names = [each.name for each in fields(train.TrainConfig)]
    assert len(names) > 40 and all(f"--{name} " in text for name in names) and "python train.py" in text


def test_eval_scores_a_model_and_a_checkpoint(tmp_path, here):
    """The command, its file, and the limits it takes over from a checkpoint's run."""
    flags = [*SMALL[:6], "--eval_size", 0, "--threads", 1, "--max_turns", 2]
    run("--out", tmp_path / "run", "--steps", 1, *flags)
    for name, model in (("one", "tiny"), ("two", str(tmp_path / "run" / "checkpoint-1"))):
        flags = ["--limit", 5, "--threads", 1, "--arms", "on,forced", "--out", tmp_path / name]
        done = run_script("eval.py", "--model", model, *flags)
        assert done.returncode == 0 and "forced" in done.stdout, done.stderr
        stored = json.loads((tmp_path / name / "eval.json").read_text())
        assert stored["protocol"]["max_turns"] == {"one": 4, "two": 2}[name]
        assert stored["arms"]["on"]["all"]["n"] == 5
    for wrong, message in (
        (["--arms", "on,off2"], "unknown arm off2"),
        (["--model", "nix"], "unknown model"),
    ):
        bad = here("eval.py", *wrong)
        assert bad.returncode == 2 and message in bad.stderr.splitlines()[-1]


# --------------------------------------------------------------------------------------------------
# Out of memory is no end.


class Gradients(TrainerCallback):
    """What the optimiser is about to use."""

    def __init__(self, trainer):
        self.seen = {}
        self.model = trainer.model

    def on_pre_optimizer_step(self, *arguments, **more):
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                self.seen[name] = weight.grad.clone()


def first_gradients(trainer) -> dict[str, torch.Tensor]:
    """Of the first step, whose LoRA weights are not zero."""
    disturb(trainer)
    watcher = Gradients(trainer)
    trainer.add_callback(watcher)
    trainer.train()
    return watcher.seen


def cap_updates(monkeypatch, most: int, where: str) -> None:
    """Let updates of more than `most` members run out of memory, in the forward or in the backward pass."""
    shared = train.shared_prefix_logprobs
    plain = train.policy_logprobs

    def capped(members: int, compute):
        if members > most and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        logprobs, *others = compute()
        if members > most and logprobs.requires_grad:
            logprobs.register_hook(out_of_memory)
        return logprobs, *others

    def capped_shared(model, groups, temperature):
        return capped(sum(map(len, groups)), lambda: shared(model, groups, temperature))

    def capped_plain(model, processor, members, temperature):
        return capped(len(members), lambda: plain(model, processor, members, temperature))

    monkeypatch.setattr(train, "shared_prefix_logprobs", capped_shared)
    monkeypatch.setattr(train, "policy_logprobs", capped_plain)


def out_of_memory(*arguments, **more):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def check_halves(build, script, monkeypatch, capsys, where: str, **flags) -> None:
    """The gradients of a first step whose updates run out of memory are those of one whose don't."""
    flags |= {"steps": 1, "trl": {"max_grad_norm": 1e9}}  # clipped ones would hide a wrong scale
    script(random_turn)
    trainer = build(**flags)
    wanted = first_gradients(trainer)
    script(random_turn)
    cap_updates(monkeypatch, -(-trainer.args.per_device_train_batch_size // 2), where)
    found = first_gradients(build(**flags))
    said = capsys.readouterr().out
    assert said.count("out of memory in an update: from here on") == 1
    assert_equal(found, wanted, 1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"engine": "generate"},
        {"loss_type": "grpo"},
        {"loss_type": "bnpo", "micro_batch": 3},
        {"loss_type": "dr_grpo", "beta": 0.04},
    ],
)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_update_out_of_memory_is_done_in_halves(build, script, monkeypatch, capsys, flags, where):
    """The same gradients come out, though the first attempt had got as far as some gradients."""
    check_halves(build, script, monkeypatch, capsys, where, **flags)


class MeanOfSums(train.ZoomGRPOTrainer):
    """A way of averaging that somebody adds: the mean over trajectories of the sum of their token losses."""

    def average(self, loss, mask, whole):
        return loss.sum() / len(whole) / self.current_gradient_accumulation_steps


class MeanOfTheLive(train.ZoomGRPOTrainer):
    """Another one, by the root of the lengths, over the trajectories that have a gradient: how many these are
    elsewhere, `whole` alone tells."""

    def average(self, loss, mask, whole):
        live = sum(abs(trajectory.advantage) > 1e-9 for trajectory in whole)
        by_length = loss.sum(1) / mask.sum(1).sqrt()
        return by_length.sum() / live / self.current_gradient_accumulation_steps


@pytest.mark.parametrize("kind", [MeanOfSums, MeanOfTheLive])
def test_an_average_of_ones_own_survives_halves(build, script, monkeypatch, capsys, kind):
    """`average` is given the whole micro-batch, so that no branch needs to know of memory."""
    check_halves(build, script, monkeypatch, capsys, "forward", kind=kind, micro_batch=12)


def test_what_fails_in_halves_is_the_end(build, script, monkeypatch):
    script(random_turn)
    cap_updates(monkeypatch, 1, "forward")
    with pytest.raises(torch.OutOfMemoryError):
        build(micro_batch=6).train()


def test_a_rollout_out_of_memory_gets_half_the_slots(build, script, monkeypatch, capsys, tmp_path):
    plain = slots.SlotCache.__init__

    def capped(cache, config, count, *arguments):
        if count > 6:
            out_of_memory()
        plain(cache, config, count, *arguments)

    script(random_turn)
    monkeypatch.setattr(slots.SlotCache, "__init__", capped)
    script(random_turn)
    trainer = build(steps=1)
    found = first_gradients(trainer)
    assert trainer.rollout_batch == 6 and trainer.config.batch == 256
    assert capsys.readouterr().out.count("out of memory: once more with --batch 6") == 1
    assert all(gradient.norm() > 0 for gradient in found.values())
    assert len(metrics(tmp_path)) == 1
    monkeypatch.setattr(slots.SlotCache, "__init__", out_of_memory)
    with pytest.raises(RuntimeError, match="can't allocate"):
        build().train()


def test_the_last_word_is_of_the_phase_that_failed(build, script, monkeypatch, capsys):
    """Advice is by the phase, not by the plan's largest part; and it can be typed: see the next test."""
    script(random_turn)
    for where, flag in (("rollout", "--batch 32"), ("update", "--micro_batch 16")):
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
            if where == "rollout":
                patched.setattr(slots.SlotCache, "__init__", out_of_memory)
            else:
                patched.setattr(train.ZoomGRPOTrainer, "compute_loss", out_of_memory)
            with last_line(TrainConfig(out="runs/x")):
                build().train()
        assert ended.value.code == 1
        assert f"go on with less: python train.py --out runs/x --resume {flag}" in capsys.readouterr().err


def test_batch_and_micro_batch_may_change_when_a_run_goes_on(tmp_path):
    """Of another micro-batch the same steps come out, but for rounding."""
    flags = shlex.split("--eval_size 0 --prompts 2 --group 4 --micro_batch 8 --save_every 1 --threads 1")
    for name, steps in (("whole", 2), ("parts", 1)):
        done = run_script("train.py", *flags, "--steps", steps, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert read_config(["--out", str(tmp_path / "parts"), "--resume", "--batch", "4"]).batch == 4
    less = ["--steps", 2, "--micro_batch", 4]
    done = run_script("train.py", "--out", tmp_path / "parts", "--resume", *less)
    assert done.returncode == 0, done.stderr
    whole, parts = metrics(tmp_path / "whole")[1], metrics(tmp_path / "parts")[1]
    for key in ("reward", "tokens", "loss", "grad_norm"):
        assert parts[key] == pytest.approx(whole[key], rel=2e-3, abs=1e-5), key


def test_the_last_word_names_the_flag(tmp_path):
    """By the command: an address space too small for the run ends it in a line, exit code 1."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv = "train.py --steps 1 --prompts 2 --eval_size 0 --out".split() + [{str(tmp_path / "run")!r}]
import engine.slots, runpy
def full(*arguments):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
engine.slots.SlotCache.__init__ = full
runpy.run_path("train.py", run_name="__main__")
"""
    done = run_script("-c", code)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "out of memory" in last and "--resume --batch 8" in last
    assert "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------------
# Precision.


def test_adapters_in_4_bits_train_in_float32_before_and_after_a_resume(tmp_path):
    """TRL would have them in bfloat16, where a step of 2e-5 is lost."""
    given = dict(
        quantize="4bit", prompts=2, group=2, micro_batch=4, eval_size=0, save_every=1, threads=1,
        max_turns=2, max_turn_tokens=8, show_every=100,
    )  # fmt: skip
    checkpoint = None
    for steps in (1, 2):
        model, processor = load_model("tiny", quantize="4bit", dtype=torch.bfloat16, device="cpu")
        config = train.TrainConfig(**given, steps=steps)
        trainer = train.build_trainer(config, model, processor, load("toy", limit=4), tmp_path)
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        trainer.train(resume_from_checkpoint=checkpoint)
        assert {p.dtype for p in trained} == {torch.float32}
        states = [v for s in trainer.optimizer.state.values() for v in s.values()]
        moments = [value for value in states if value.dim()]
        assert len(moments) >= 2 * len(trained) and {v.dtype for v in moments} == {torch.float32}
        checkpoint = str(tmp_path / f"checkpoint-{steps}")


def test_a_step_of_the_default_rate_moves_the_adapters(build, script):
    """Of the entries of lora_A most move by an update of 2e-5; in bfloat16 most would not."""
    script(random_turn)
    trainer = build(lr=2e-5, steps=2, lr_schedule="constant")
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if "lora_A" in n}
    trainer.train()
    now = dict(trainer.model.named_parameters())
    moved = torch.cat([(now[n] != p).flatten() for n, p in before.items()]).float().mean()
    rounded = torch.cat([(now[n].bfloat16() != p.bfloat16()).flatten() for n, p in before.items()])
    assert moved > 0.9 > 0.6 > rounded.float().mean()
