"""Questions about an image of the user's, one after the other: `eval.py --ask photo.jpg "What ...?"`.

With the image alone, questions are read line by line; the model is loaded once.
"""

import sys
from dataclasses import replace
from pathlib import Path

from config import EvalConfig, rollout_limits
from data import Sample, check
from engine.inputs import pixel_budgets
from evaluation.scores import answer_questions
from grading.answers import find_answer
from model import load_model, prepare_libraries
from rollout import Trajectory
from runlog.render import make_page
from runlog.runs import new_folder, store_answer
from safe.files import read_rows
from safe.lock import hold
from tools import Call


def ask(config: EvalConfig, wording: tuple[str, str] | None = None) -> Path:
    """Answer the questions of --ask, print each answer with the turns that led to it, and write them to a
    page, whose path is returned.

    wording: of the prompt, for a model that was trained with another one.
    """
    image, *questions = config.ask
    Sample("ask", image, "?", "?").open()  # raises ValueError where it can't be read
    out = new_folder(f"runs/ask-{model_label(config.model)}", config.out, folder_fault)
    hold(out)
    prepare_libraries(config.threads)
    model, processor = load_model(config.model, quantize=config.quantize)
    pixel_budgets(processor, config.look_pixels, config.crop_pixels)
    settings = rollout_limits(config) | {"temperature": config.temperature}
    asked = len(read_rows(out / "trajectories.jsonl"))
    for number, question in enumerate(questions or lines_of_a_user(), asked + 1):
        sample = Sample(f"ask-{number}", image, question, "?", source="ask", wording=wording)
        try:
            check(sample)
        except ValueError as error:
            print(f"not asked: {error}")
            continue
        sample = replace(sample, answer="")  # there is no gold answer
        (trajectory,) = answer_questions(model, processor, [sample], "on", **settings)
        if wording:
            trajectory.answer = trajectory.answer or last_message(trajectory)
        print(answer_text(trajectory), flush=True)
        store_answer(out, trajectory, None, "on", processor.tokenizer)
        make_page(out)
    return out / "report.html"


def model_label(model: str) -> str:
    """A model's name in the name of a folder of results. A checkpoint gets the name of its run, too.

    >>> model_label("runs/mine/checkpoint-80"), model_label("Qwen/Qwen3-VL-2B-Instruct")
    ('mine-checkpoint-80', 'Qwen3-VL-2B-Instruct')
    """
    path = Path(model)
    is_checkpoint = path.name.startswith("checkpoint-")
    return f"{path.parent.name}-{path.name}" if is_checkpoint else path.name


def folder_fault(folder: Path) -> str:
    """Why answers to questions of --ask can't go into a folder; "" if they can."""
    names = ("args.json", "protocol.json", "eval.json")
    return "is the folder of another run" if any((folder / name).exists() for name in names) else ""


def lines_of_a_user():
    """Questions from the terminal or a pipe, up to an empty line or the end."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("question (an empty line ends): ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def last_message(trajectory: Trajectory) -> str | None:
    """The answer of a model that was asked in other words than ours: what stands in tags, or in a box, or all
    after its thought. None if it was cut, or ran out of turns.
    """
    if trajectory.stop != "no_call":
        return None
    message = trajectory.turns[-1].rpartition("</think>")[2].strip()
    return find_answer(message) or find_answer(message, boxed=True) or message or None


def answer_text(trajectory: Trajectory) -> str:
    """The model's turns, the result of each call, and the answer."""
    lines = []
    calls = iter(trajectory.calls)
    for turn in trajectory.turns:
        lines.append(visible(turn.strip()))
        if call := next(calls, None):
            lines.append(f"  -> refused: {call.error}" if call.error else shown_text(call))
    answer = visible(trajectory.answer or "none")
    lines.append(f"\nanswer: {answer} (images looked at: {trajectory.delivered})")
    if trajectory.stop not in ("answer", "no_call"):
        lines.append(f"stopped: it ran out of {ENDS[trajectory.stop]}")
    return "\n".join(lines)


def visible(text: str) -> str:
    """A model's text for a terminal: control characters are spelled out.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


ENDS = {
    "turns": "turns (--max_turns)",
    "length": "tokens for a turn (--max_turn_tokens)",
    "budget": "tokens (--max_tokens)",
}


def shown_text(call: Call) -> str:
    """What a call has shown: the region, in original pixels, and the size in pixels of the image shown."""
    width, height = call.picture.size
    shown = f"what {call.name} makes of the image"
    if call.region:
        corners = ", ".join(f"{v:.0f}" for v in call.region)
        shown = f"({corners}) of the image"
    return f"  -> shown: {shown}, at {width} x {height} pixels"
