"""Scripts as processes of their own that start at once: forked from a server that has imported torch and TRL.

A fresh Python imports them for some ten seconds; the tests start many scripts. A few tests start
a fresh Python all the same, so that nothing leans on what the server holds.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["train", "eval", "select_data", "doctor", "bench", "study.run"])


def become(command: list[str], cwd, out: str, err: str, env: dict) -> None:
    """In the forked process: turn into `python COMMAND` (a script, -m MODULE or -c CODE), written to these
    two files."""
    os.setsid()  # a group of its own, to be killed as one
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    kind, *rest = command
    sys.argv = rest if kind == "-m" else command
    try:
        if kind == "-c":
            exec(rest[0], {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / kind), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without


class Script:
    """A script at work, with what the tests use of subprocess.Popen."""

    def __init__(self, *command, cwd=ROOT, out=os.devnull, err=os.devnull, env=None):
        command = [str(word) for word in command]
        arguments = (command, cwd, str(out), str(err), dict(os.environ if env is None else env))
        self.process = forkserver.Process(target=become, args=arguments)
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


class Told(Script):
    """One whose lines, of both streams, are read while it works."""

    def __init__(self, *command, **more):
        self.folder = tempfile.TemporaryDirectory()
        pipe = Path(self.folder.name) / "lines"
        os.mkfifo(pipe)
        super().__init__(*command, out=pipe, err=pipe, **more)
        self.stdout = pipe.open()  # waits for the other end


def run_script(*command, **more) -> subprocess.CompletedProcess:
    """run_script("train.py", "--steps", 1): to its end, with what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        code = Script(*command, out=out, err=err, **more).wait()
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())
