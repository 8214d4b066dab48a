"""SIGTERM and Ctrl-C: the first one lets a step be finished and saved, a second one ends at once."""

import signal

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # what a shell expects


class Stopped(BaseException):
    """Asked to stop where nothing is to be finished."""

    def __init__(self, number: int):
        super().__init__(number)
        self.code = CODES[number]


class Request:
    """Whether we have been asked to stop. `patient`: something is under way that will look here."""

    def __init__(self):
        self.number = 0
        self.patient = False

    def install(self) -> None:
        for number in CODES:
            signal.signal(number, self.receive)

    def receive(self, number: int, frame) -> None:
        if not self.patient or self.number:
            raise Stopped(number)
        self.number = number
        print("\nstopping after this step; once more stops at once", flush=True)


REQUEST = Request()
