"""SIGTERM and Ctrl-C: the first one lets a step be finished and saved, a second one ends at once."""

import ctypes
import os
import signal
import sys
import threading

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # what a shell expects


def die_with_parent() -> None:
    """End this process where the one that started it is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


class Stopped(BaseException):
    """Asked to stop where nothing is to be finished."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number
        self.code = CODES[number]


class Request:
    """Whether we have been asked to stop. `patient`: something is under way that will look here."""

    def __init__(self):
        self.number = 0
        self.patient = False

    def install(self) -> None:
        for number in CODES:
            signal.signal(number, self.receive)
        sys.unraisablehook = ask_again

    def receive(self, number: int, frame) -> None:
        if not self.patient or self.number:
            raise Stopped(number)
        self.number = number
        print("\nstopping after this step; once more stops at once", flush=True)


def ask_again(lost) -> None:
    """Python drops what is raised in a destructor or around a fork: a signal lost there is sent again."""
    if not isinstance(lost.exc_value, Stopped):
        sys.__unraisablehook__(lost)
        return
    number = lost.exc_value.number
    timer = threading.Timer(0.1, os.kill, (os.getpid(), number))
    timer.daemon = True  # a process that ends meanwhile need not be asked
    timer.start()


REQUEST = Request()
