"""How a training ends: in a line, whatever ends it, and with an exit code that says what it was."""

import errno
import sys
from contextlib import contextmanager

import plan
from knobs import fail
from safe.checkpoints import SaveFailed
from safe.memory import is_out_of_memory
from safe.signals import Stopped
from safe.trainer import NotFinite


@contextmanager
def last_line(knobs):
    """2 for a mistake of the user; 1 for numbers, memory or a disk that ran out; 130 and 143 for a request to
    stop. knobs: of train.py."""
    try:
        yield
    except ValueError as error:
        fail(str(error))
    except (NotFinite, SaveFailed) as error:
        fail(str(error), code=1)
    except (RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            fail(f"out of memory. {plan.advice(knobs)}; then --resume", code=1)
        if not is_full(error):
            raise
        fail(f"the disk is full: {error}; make room, then --resume", code=1)
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"\nstopped; go on with: python train.py --out {knobs.out} --resume", flush=True)
        sys.exit(getattr(stop, "code", 130))


def is_full(error: BaseException) -> bool:
    """No room left on the disk, or in what a user may have of it.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(OSError(errno.EPERM, "no"))
    (True, False)
    """
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
