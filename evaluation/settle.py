"""The flags of eval.py, settled once: given, of the run that wrote the checkpoint, or usual for the protocol
and the data; checked before anything heavy is imported."""

import math
from dataclasses import replace
from pathlib import Path

from config import (
    ARMS,
    BENCHMARK_KINDS,
    PAPER_LIMITS,
    EvalConfig,
    big_limits,
    check_at_least,
    check_data_name,
    check_limits,
    fill_limits,
    parse,
)
from safe.files import fail

THOUGHT_TOKENS = 4096  # at least, on benchmarks of reasoning; others give 16,384 and more
# The paper's script for V* has 11 turns, and no limit for a whole completion: 20,480 tokens are training's.
PAPER = PAPER_LIMITS | {"max_turns": 11, "official_order": True}


def read_config(argv: list[str], doc: str = "") -> EvalConfig:
    """Parse, check and settle the flags. Exits with 2 and one clear line. doc: of eval.py."""
    config, given = parse(EvalConfig, argv, doc)
    check_words(config, given)
    config = settle(config, given)
    check_numbers(config)
    return config


def check_words(config: EvalConfig, given: set[str]) -> None:
    """End the script for a name that is unknown, or a flag that needs another one."""
    if unknown := set(config.arms.split(",")) - set(ARMS):
        fail(f"unknown arm {', '.join(sorted(unknown))}; known: {', '.join(ARMS)}")
    if "ask" in given and not config.ask:
        fail('--ask: which image? --ask photo.jpg "What does the sign say?"')
    if config.ask and not Path(config.ask[0]).is_file():
        fail(f"no such image: {config.ask[0]}")
    if not config.ask:
        check_data_name(config.data, BENCHMARK_KINDS)
    foreign = config.ask or config.data in BENCHMARK_KINDS
    if foreign and "model" not in given:
        fail("--model: which? The tiny model has seen nothing but the toy, no photograph")
    if read_prompt(config.prompt) and "arms" not in given and not config.ask:
        fail("--prompt needs --arms: on if its words offer the zoom, off if they don't")


def settle(config: EvalConfig, given: set[str]) -> EvalConfig:
    """The flags in force. A flag that was not given gets what is usual for the model, then for the protocol,
    then for the data."""

    def with_usual(config: EvalConfig, **usual) -> EvalConfig:
        return replace(config, **{name: value for name, value in usual.items() if name not in given})

    config = fill_limits(config, given)
    if config.protocol == "paper":
        config = with_usual(config, **PAPER)
    if config.data in BENCHMARK_KINDS:
        config = with_usual(config, limit=0)
    if BENCHMARK_KINDS.get(config.data) == "reasoning":
        # An answer whose thought is cut counts as wrong.
        config = with_usual(config, max_turn_tokens=max(config.max_turn_tokens, THOUGHT_TOKENS))
        config = with_usual(config, max_plain_tokens=0)
        config = with_usual(config, max_tokens=max(config.max_tokens, config.max_turn_tokens))
        config = with_usual(config, arms="on,off" if config.zoom else "off")
    if config.repeats > 1:
        config = with_usual(config, temperature=1.0)
    usual_look = big_limits().look_pixels
    if config.look_pixels > usual_look:  # the cache grows with the first look
        config = with_usual(config, batch=max(2, config.batch * usual_look // config.look_pixels))
    return config


def check_numbers(config: EvalConfig) -> None:
    """End the script for a number that makes no sense."""
    check_limits(config)
    check_at_least(1, config, "repeats")
    if not 0 <= config.temperature < math.inf:
        fail("--temperature must be a number from 0 (greedy) on")
    is_benchmark = config.data in BENCHMARK_KINDS
    if config.limit < 0 or (config.limit == 0 and not is_benchmark):
        fail("--limit must be at least 1 (0, all questions, for benchmarks)")
    if config.repeats > 1 and not config.temperature:
        fail("--repeats of a greedy model are all the same: give a --temperature")


def read_prompt(file: str) -> tuple[str, str] | None:
    """The words of --prompt: the system prompt, and the user's text with "{question}" in it. None without a
    file. A file without a line of --- is all user's text. Ends the script if {question} is missing."""
    if not file:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8").strip("\n")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--prompt {file}: can't be read ({type(error).__name__})")
    system, line, user = text.partition("\n---\n")
    if not line:
        from tools import PLAIN_SYSTEM  # heavy, and seldom needed

        system = PLAIN_SYSTEM
        user = text
    if user.count("{question}") != 1:
        fail(f"--prompt {file}: the user's text (after a line ---) must hold {{question}} once")
    if "<|" in text:
        fail(f"--prompt {file}: no special tokens such as <|im_start|>; turns and image are added")
    return system, user
