"""The trainer: exact on scripted episodes, and the real commands on the toy."""

import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call
from PIL import Image

import train
from data import Sample, load
from toy.make_base import make_model


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
def build(processor, tmp_path):
    """build(knob=value, ...): a trainer on a fresh random tiny model."""

    def make(more=None, **knobs):
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
        knobs = train.Knobs(**defaults | knobs)
        return train.build_trainer(
            knobs,
            make_model(processor.tokenizer),
            copy.copy(processor),
            load("toy", limit=6),
            tmp_path,
            **more or {},
        )

    return make


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"micro_batch": 12},
        {"micro_batch": 1},
        {"beta": 0.04},
        {"loss_type": "dr_grpo"},
        {"engine": "generate"},
    ],
)
def test_trainer_logprobs_equal_the_samplers(build, script, tmp_path, knobs, pack):
    """Recomputed by TRL over padded micro-batches with all pictures, at step 2 with LoRA weights that are
    not zero."""
    script(random_turn)
    trainer = build(**knobs, pack_groups=pack)
    trainer.train()
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["logp_gap"] for row in rows) < 1e-4
    assert rows[0]["delivered"] > 0 and rows[0]["errors"] > 0 and rows[0]["grad_norm"] > 0
    changed = [p.abs().sum() for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert all(changed) and not any(
        p.requires_grad for name, p in trainer.model.named_parameters() if "visual" in name
    )


def gradients(trainer, steps: int = 1) -> dict[str, torch.Tensor]:
    """Every LoRA tensor's gradient, summed over the steps of a run that starts from LoRA weights that are not
    zero."""
    total, random = Counter(), torch.Generator().manual_seed(5)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=random)
            parameter.register_hook(lambda g, name=name: total.update({name: g}))
    trainer.train()
    return total


def assert_equal(some: dict, others: dict, tolerance: float):
    assert set(some) == set(others) and all(g.norm() > 0 for g in others.values())
    for name, gradient in others.items():
        assert (some[name] - gradient).norm() < tolerance * gradient.norm(), name


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"micro_batch": 12},  # all groups in one micro-batch
        {"micro_batch": 2},  # parts of groups
        {"beta": 0.04, "loss_type": "grpo"},
        {"loss_type": "dr_grpo", "temperature": 0.7},
        {"loss_type": "bnpo", "more": {"gradient_checkpointing": True}},
        {"steps": 4, "more": {"num_iterations": 2, "steps_per_generation": 4}},
    ],
)
def test_gradients_of_packed_groups_are_trls(build, script, monkeypatch, knobs):
    """Against TRL's own forward pass on the same trajectories: groups of unequal lengths, members with and
    without zooms."""
    results, losses = [], []
    for pack in (True, False):
        script(random_turn)
        # lr: above zero where the second iteration must differ from the first
        trainer = build(**{"steps": 1, "lr": 1e-4 if "steps" in knobs else 0.0, "pack_groups": pack} | knobs)
        results.append(gradients(trainer))
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert_equal(*results, 1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-7)


def test_the_page_shows_the_advantages_that_train(build, script, tmp_path, monkeypatch):
    """Those of a stored group are those in the trainer's batch, for both ways of taking them."""
    for kind in ("std", "mean"):
        script(random_turn)
        trainer = build(steps=1, prompts=1, group=6, micro_batch=6, advantage=kind, show_every=1)
        seen, plain = [], trainer.compute_loss

        def spy(model, inputs, *args, seen=seen, plain=plain, **more):
            seen += inputs["advantages"].tolist()
            return plain(model, inputs, *args, **more)

        monkeypatch.setattr(trainer, "compute_loss", spy)
        (tmp_path / "trajectories.jsonl").unlink(missing_ok=True)
        trainer.train()
        rows = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
        shown = sorted(row["advantage"] for row in rows if not row["probe"])
        assert len(set(shown)) > 1 and shown == pytest.approx(sorted(seen), abs=1e-4)


def test_formulas_are_compared_in_training(build, script, tmp_path):
    """math-verify keeps its time by a signal, which works in the main thread alone: there all are scored."""
    sample = Sample("1", Image.new("RGB", (200, 200)), "How much?", r"\frac{1}{2}", tool=False)
    said = iter([r"\boxed{0.5}", r"\boxed{\frac{2}{4}}", r"\boxed{\frac{1}{2}}", r"\boxed{3}"])
    script(lambda rng: next(said))
    trainer = build(steps=1, group=4)
    _, rewards = trainer.sample([sample])
    assert sorted(r.accuracy for r in rewards) == [0.0, 1.0, 1.0, 1.0]


def test_trajectories_without_an_advantage_are_not_computed(build, script, monkeypatch):
    """A dead group costs nothing, and its absence changes neither loss nor gradients."""
    results, computed = [], []
    plain = train.packed_logprobs

    def spy(base, ids, *rest):
        computed.append(len(ids))
        return plain(base, ids, *rest)

    monkeypatch.setattr(train, "packed_logprobs", spy)

    def policy(rng):  # the first group always fails alike, the others differ
        policy.asked += 1
        return "<think> hm</think>" if policy.asked <= 4 else random_turn(rng)

    for pack in (True, False):
        policy.asked = 0
        script(policy)
        results.append(gradients(build(steps=1, lr=0.0, pack_groups=pack, micro_batch=4)))
    assert_equal(*results, 1e-5)
    assert sum(computed) <= 9  # one of the dead group's four rows, the others as they are


def test_two_pictures_of_one_question_are_two_groups(build, script, monkeypatch):
    """The same prompt ids, but another picture: not one group."""
    same = [replace(sample, question="What letter is on the red tile?") for sample in load("toy", limit=6)]
    results = []
    for pack in (True, False):
        script(random_turn)
        trainer = build(steps=1, lr=0.0, pack_groups=pack)
        trainer.samples = same
        results.append(gradients(trainer))
    assert_equal(*results, 1e-5)


def test_only_sampled_tokens_move_the_policy(build, script):
    """Observations carry no loss: TRL's mask covers exactly the sampled ids."""
    script(random_turn)
    trainer = build(steps=1)
    seen = []
    inner = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: seen.append(inputs) or inner(model, inputs)
    trajectories, roll = [], train.rollout
    train.rollout = lambda *a, **k: trajectories.extend(roll(*a, **k)) or trajectories
    try:
        trainer.train()
    finally:
        train.rollout = roll
    trained = Counter(
        tuple(ids[mask.bool()].tolist())
        for inputs in seen
        for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"] * inputs["tool_mask"])
    )
    assert trained == Counter(
        tuple(i for i, s in zip(t.completion_ids, t.sampled) if s) for t in trajectories
    )


def test_every_picture_is_seen_once_a_step(build, script):
    """By the rollout; the update takes its features, and sends nothing back through the vision tower."""
    script(random_turn)
    trainer = build(steps=1)
    counts, visual = Counter(), trainer.model.get_base_model().model.visual
    visual.register_forward_pre_hook(
        lambda _, args, kwargs: counts.update(seen=len(kwargs["grid_thw"])), with_kwargs=True
    )
    visual.blocks[0].register_full_backward_hook(lambda *a: counts.update(vision_backward=1))
    trainer.model.get_base_model().model.language_model.layers[0].register_full_backward_hook(
        lambda *a: counts.update(text_backward=1)
    )
    trainer.show = lambda *a: None  # it asks probe questions
    pictures, sample = set(), trainer.sample

    def note(chosen):
        trajectories, rewards = sample(chosen)
        pictures.update(id(picture) for t in trajectories for picture in t.images)
        return trajectories, rewards

    trainer.sample = note
    trainer.train()
    assert counts["seen"] == len(pictures) > 3 and counts["text_backward"] > 0 == counts["vision_backward"]


def test_the_bonus_is_the_knobs(build, script, tmp_path):
    script(lambda rng: random_turn(rng) if rng.random() < 0.5 else call(10, 10, 60, 60))
    build(steps=1, bonus="unconditional", max_turns=2).train()
    row = metrics(tmp_path)[0]
    assert row["reward_tool"] == pytest.approx(1.2 * row["tool_rate"])


# --------------------------------------------------------------------------------------------------
# The real commands.

SMALL = ["--prompts", "2", "--group", "4", "--micro_batch", "8", "--eval_size", "6", "--threads", "1"]


def run(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "train.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, **kwargs
    )


def test_the_main_job_in_small(tmp_path):
    out = tmp_path / "run"
    result = run("--out", out, "--steps", 3, *SMALL)
    assert result.returncode == 0, result.stderr
    rows = metrics(out)
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
    assert set(scores["after"]) == {"on", "off", "blank", "random", "oracle", "forced"}
    assert scores["after"]["on"]["all"]["n"] == 6 and scores["after"]["off"]["all"]["tool_rate"] == 0
    assert (out / "curves.png").stat().st_size > 10_000
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
    arguments, kept, rng = ["--out", out, "--steps", steps, *SMALL], [], random.Random(time.time())
    for kill_at in (2, 5):
        process = subprocess.Popen(
            [sys.executable, "train.py", *map(str, arguments)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for line in process.stdout:
            if line.startswith(f"step    {kill_at}/"):
                time.sleep(rng.uniform(0, 0.8))
                os.killpg(process.pid, signal.SIGKILL)
                break
        process.wait()
        checkpoint = train.last_checkpoint(out)
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


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step, text in ((1, '{"global_step": 1}'), (2, '{"global_st'), (3, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert train.last_checkpoint(tmp_path).name == "checkpoint-1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stepz", "3"], "unrecognized arguments|--stepz"),
        (["--steps", "many"], "invalid int value"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--group", "1"], "--group must be at least 2"),
        (["--micro_batch", "7"], "must divide"),
        (["--bonus", "huge"], "invalid choice: 'huge'"),
        (["--temperature", "0"], "--temperature"),
        (["--lr-schedule", "cosine"], "invalid choice: 'cosine'"),
        (["--model", "qwen9"], "unknown model 'qwen9'"),
        (["--model", "tests"], "holds no model"),
        (["--data", "toyz"], "unknown data set 'toyz'"),
        (["--out", "/proc/nowhere"], "can't write to the run folder"),
        (["--out", "no/such/run", "--resume"], "nothing to resume"),
        (["--resume", "--lr", "1"], "drop --lr"),
    ],
)
def test_bad_knobs_end_in_one_clear_line(arguments, message):
    result = run(*arguments)
    lines = [line for line in result.stderr.splitlines() if "gemm_4bit" not in line]
    assert result.returncode == 2 and len(lines) == 1 and re.search(message, lines[0]), result.stderr
    assert "Traceback" not in result.stderr


def test_help_explains_every_knob():
    text = run("--help").stdout
    assert all(f"--{name}" in text for name in train.Knobs.__dataclass_fields__) and "python train.py" in text


def test_eval_scores_a_model_and_a_checkpoint(tmp_path):
    """The command, its file, and the limits it takes over from a checkpoint's run."""
    knobs = [*SMALL[:6], "--eval_size", 0, "--threads", 1, "--max_turns", 2]
    run("--out", tmp_path / "run", "--steps", 1, *knobs)
    for name, model in (("one", "tiny"), ("two", str(tmp_path / "run" / "checkpoint-1"))):
        command = [sys.executable, "eval.py", "--limit", "5", "--threads", "1", "--out", str(tmp_path / name)]
        done = subprocess.run(
            [*command, "--model", model, "--arms", "on,forced"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0 and "forced" in done.stdout, done.stderr
        stored = json.loads((tmp_path / name / "eval.json").read_text())
        assert stored["protocol"]["max_turns"] == {"one": 4, "two": 2}[name]
        assert stored["arms"]["on"]["all"]["n"] == 5
    for wrong, message in (
        (["--arms", "on,off2"], "unknown arm off2"),
        (["--model", "nix"], "unknown model"),
    ):
        bad = subprocess.run([sys.executable, "eval.py", *wrong], cwd=ROOT, capture_output=True, text=True)
        assert bad.returncode == 2 and message in bad.stderr.splitlines()[-1]
