"""Formulas, read and compared by math-verify in a process of its own, which is killed when it takes too long.

sympy can be made to compute for ever by a dozen characters (`9!!!`), and what a model writes is not to be
trusted. The process starts with the first formula, and ends with the one that started it.

It is no worker of multiprocessing: that would import the training script anew, with torch.
"""

import json
import resource
import select
import subprocess
import sys
import threading
from pathlib import Path

from safe.signals import die_with_parent

SECONDS = 4.0  # for one question; a second of it is math-verify's own limit, twice
MEMORY = 2 * 2**30  # bytes
START = 60.0  # until the first answer: sympy is large


def value_of(text: str) -> float | None:
    """The value of a LaTeX expression; None where it has none."""
    from math_verify import parse

    try:
        value = float(parse(f"${text}$", parsing_timeout=1)[0].evalf())
        return value if abs(value) < 1e15 else None
    except Exception:  # a parser over model text: whatever it raises, this is no number
        return None


def are_equal(gold: str, prediction: str) -> bool:
    """Do two LaTeX expressions say the same?"""
    from math_verify import parse, verify

    try:
        formulas = []
        for text in (gold, prediction):
            plain = text.replace("$", "")
            formulas.append(parse(f"${plain}$", parsing_timeout=1))
        return bool(verify(*formulas, timeout_seconds=1))
    except Exception:  # whatever it raises, the formulas don't match
        return False


QUESTIONS = {"value": value_of, "equal": are_equal}


class Worker:
    """Asks the process, one question at a time, from any thread."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process = None

    def ask(self, question: str, *texts: str):
        """The answer; None if it takes too long, and then the process is gone."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.start()
                self.exchange(["equal", "1", "1"], START)
            return self.exchange([question, *texts], SECONDS)

    def exchange(self, question: list[str], seconds: float):
        if self.process is None:
            return None
        line = json.dumps(question) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            if ready:
                return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):  # it has died over this one
            pass
        self.process.kill()
        self.process.wait()
        self.process = None
        return None

    def start(self) -> None:
        root = Path(__file__).parent.parent
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grading.formulas"],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's business
        )


WORKER = Worker()


def limit() -> None:
    """No more than MEMORY, and no longer than the process that has started this one."""
    die_with_parent()
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """Answer questions, a line each, until there are no more."""
    limit()
    for line in sys.stdin:
        question, *texts = json.loads(line)
        answer = QUESTIONS[question](*texts)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
