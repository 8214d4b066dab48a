"""Several seeds of one run, one after the other, and a page that compares them: `train.py --seeds 0,1,2`.

Each is a process of its own. The same command again goes on where it was stopped.
"""

import signal
import subprocess
import sys
from pathlib import Path

from config import TrainConfig
from runlog.compare import scores_text
from runlog.render import make_page
from runlog.runs import usual_name
from safe.signals import CODES

OWN = ("seeds", "out", "resume")  # flags that each run gets from here


def run_seeds(config: TrainConfig, argv: list[str]) -> int:
    """Do or finish all runs; returns the exit code. argv: of train.py."""
    begin = config.out.rstrip("/") or usual_name(config)
    runs = []
    for seed in config.seeds.split(","):
        run = f"{begin}-seed{seed}"
        runs.append(Path(run))
        command = [sys.executable, argv[0], *without(argv[1:], OWN)]
        command += ["--seed", seed, "--out", run, "--resume"]
        print(f"\nseed {seed}: {run}", flush=True)
        code = call(command)
        if code in CODES.values():
            print(f"stopped at seed {seed}; the same command goes on", flush=True)
        if code:
            return code
    print("\n" + scores_text(runs))
    page = make_page(runs, Path(f"{begin}-all.html"))
    print(f"page:   {page}")
    return 0


def without(argv: list[str], names) -> list[str]:
    """The words of a command line but for these flags and what follows them.

    >>> without(["--lr", "1", "--out=x", "--seeds", "0,1", "--resume", "--plan"], OWN)
    ['--lr', '1', '--plan']
    """
    kept = []
    dropping = False
    for word in argv:
        if word.startswith("--"):
            flag = word[2:].split("=")[0]
            dropping = flag in names
        if not dropping:
            kept.append(word)
    return kept


def call(command: list[str]) -> int:
    """Run a command to its end; what asks us to stop is passed on, and ends in its exit code."""
    asked = []
    child = None

    def stop(number, frame):
        asked.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, stop) for number in CODES}
    try:
        child = subprocess.Popen(command)
        # Asked before there was a child to pass it on to
        if asked:
            child.send_signal(asked[0])
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        return CODES[asked[0]]
    return 128 - code if code < 0 else code  # as a shell has it for what a signal has ended
