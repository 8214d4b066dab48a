"""How a run ends that can't go on: in a line, and an exit code that says what it was."""

import errno
import sys
from contextlib import contextmanager

from config import TrainConfig
from machine import memory_estimate
from safe.checkpoints import SaveFailed
from safe.files import fail
from safe.memory import is_out_of_memory
from safe.signals import Stopped
from training.base import NotFinite


@contextmanager
def last_line(config: TrainConfig):
    """2 for a mistake of the user; 1 for NaN, memory or a disk that ran out; 130 and 143 for a request to
    stop."""
    try:
        yield
    except ValueError as error:
        fail(str(error))
    except (NotFinite, SaveFailed) as error:
        fail(str(error), code=1)
    except (RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            fail(f"out of memory. {with_less_memory(config, getattr(error, 'phase', ''))}", code=1)
        if not is_full(error):
            raise
        fail(f"the disk is full: {error}; make room, then --resume", code=1)
    except (Stopped, KeyboardInterrupt) as stop:
        go_on = (
            f"go on with: python train.py --out {config.out} --resume" if config.out else "nothing is lost"
        )
        print(f"\nstopped; {go_on}", flush=True)
        sys.exit(getattr(stop, "code", 130))


def with_less_memory(config: TrainConfig, phase: str) -> str:
    """What to type after memory has run out in a phase, where half of it has been tried already.

    >>> with_less_memory(TrainConfig(out="runs/x", micro_batch=16), "update")
    'go on with less: python train.py --out runs/x --resume --micro_batch 4'
    """
    used = min(config.batch, config.prompts * config.group)
    less = {
        "rollout": f"--batch {max(config.group, used // 4)}",
        "update": f"--micro_batch {config.micro_batch // 4}",
    }
    if phase in less and config.out and config.micro_batch >= 4:
        return f"go on with less: python train.py --out {config.out} --resume {less[phase]}"
    return f"{memory_estimate.advice(config, phase)}; then --resume"


def is_full(error: BaseException) -> bool:
    """No room left on the disk, or in what a user may have of it.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(OSError(errno.EPERM, "no"))
    (True, False)
    """
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
