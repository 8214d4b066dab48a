"""How a training ends: with scores and where all is; or in a line, and an exit code that says what it was."""

import errno
import sys
from contextlib import contextmanager
from pathlib import Path

from config import ARMS
from evaluation import scores
from evaluation.validation import comparison_text
from machine import memory_estimate
from model import merge
from runlog.render import make_page
from safe.checkpoints import SaveFailed, newest_whole
from safe.files import fail
from safe.memory import is_out_of_memory
from safe.signals import Stopped
from training.base import NotFinite


def finish(knobs, run: Path, trainer, held_out, steps: int) -> None:
    """Scores with controls, curves, perhaps a merged checkpoint, and where it all is.

    knobs: of train.py. held_out: a `HeldOut`. steps: done.
    """
    if held_out.samples:
        print("held-out questions after training, with controls", flush=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        after = held_out.score(model, trainer.processing_class, "after", ARMS, steps)
        rows = {f"before: {arm}": row for arm, row in held_out.stored()["before"].items()}
        rows |= {f"after: {arm}": row for arm, row in after.items()}
        print(scores.score_table(rows))
        print(comparison_text(held_out.compare()))
        print(f"scores: {held_out.file}")
    checkpoint = newest_whole(run)
    if knobs.merge:
        merge(str(checkpoint), run / "merged")
        print(f"merged: {run / 'merged'}")
    page = make_page(run)
    print(f"page:   {page}\ncurves: {page.with_name('curves.png')}\nmodel:  {checkpoint}")


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
            fail(f"out of memory. {memory_estimate.advice(knobs)}; then --resume", code=1)
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
