"""Questions about an image of one's own, one after the other: `eval.py --ask photo.jpg "What ...?"`.

The image alone: questions are read line by line, and the model is loaded once.
"""

import sys
from dataclasses import replace
from pathlib import Path

from config import rollout_limits
from data import Sample, check
from engine.inputs import pixel_budgets
from evaluation.scores import answer_questions
from grading.answers import find_answer
from model import load_model, prepare_libraries
from runlog.render import make_page
from runlog.runs import store_answer
from safe.files import fail, read_rows
from safe.lock import hold


def ask(config, wording: tuple[str, str] | None = None) -> Path:
    """Answer what is asked in the config of eval.py, print how, and write it to a page, which is returned.

    wording: of the prompt, for a model that was trained with other words.
    """
    image, *questions = config.ask
    Sample("ask", image, "?", "?").open()  # raises ValueError where it can't be read
    out = own_folder(Path(config.out or f"runs/ask-{model_label(config.model)}"))
    prepare_libraries(config.threads)
    model, processor = load_model(config.model, quantize=config.quantize or None)
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
        sample = replace(sample, answer="")  # nobody knows it
        (trajectory,) = answer_questions(model, processor, [sample], "on", **settings)
        if wording:
            trajectory.answer = trajectory.answer or last_message(trajectory)
        print(answer_text(trajectory), flush=True)
        store_answer(out, trajectory, None, "on", processor.tokenizer)
        make_page(out)
    return out / "report.html"


def model_label(model: str) -> str:
    """What a folder of results is called after: of a checkpoint with the name of its run.

    >>> model_label("runs/mine/checkpoint-80"), model_label("Qwen/Qwen3-VL-2B-Instruct")
    ('mine-checkpoint-80', 'Qwen3-VL-2B-Instruct')
    """
    path = Path(model)
    is_checkpoint = path.name.startswith("checkpoint-")
    return f"{path.parent.name}-{path.name}" if is_checkpoint else path.name


def own_folder(out: Path) -> Path:
    """The folder of the answers, made and locked; ends the script if it holds something else."""
    if any((out / name).exists() for name in ("args.json", "protocol.json", "eval.json")):
        fail(f"{out} is the folder of another run; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"can't write to {out}: {error.strerror}")
    hold(out)
    return out


def lines_of_a_user():
    """Questions from the terminal, or from a pipe, until an empty line or the end."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("question (an empty line ends): ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def last_message(trajectory) -> str | None:
    """What a model said that was asked in other words than ours: in tags, in a box, or all after its thought.

    None where it was cut, or ran out of turns.
    """
    if trajectory.stop != "no_call":
        return None
    said = trajectory.turns[-1].rpartition("</think>")[2].strip()
    tagged = find_answer(said)
    boxed = find_answer(said, boxed=True)
    return tagged or boxed or said or None


def answer_text(trajectory) -> str:
    """What was written, what came of each call, and the answer."""
    lines = []
    calls = iter(trajectory.calls)
    for turn in trajectory.turns:
        lines.append(visible(turn.strip()))
        if call := next(calls, None):
            lines.append(f"  -> refused: {call.error}" if call.error else shown_text(call))
    answer = visible(trajectory.answer or "none")
    lines.append(f"\nanswer: {answer} (images looked at: {trajectory.delivered})")
    if trajectory.stop not in ("answer", "no_call"):
        lines.append(f"it ended for want of {ENDS[trajectory.stop]}")
    return "\n".join(lines)


def visible(text: str) -> str:
    """What a model wrote, for a terminal: characters that would steer it are spelled out.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


ENDS = {
    "turns": "turns: --max_turns",
    "length": "tokens in a turn: --max_turn_tokens",
    "budget": "tokens: --max_tokens",
}


def shown_text(call) -> str:
    """What a call was answered with: the region of the image, and the size at which it was shown."""
    width, height = call.picture.size
    what = f"what {call.name} makes of the image"
    if call.region:
        corners = ", ".join(f"{v:.0f}" for v in call.region)
        what = f"({corners}) of the image"
    return f"  -> shown: {what}, at {width} x {height} pixels"
