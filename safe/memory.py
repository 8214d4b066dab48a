"""Memory that runs out: what says so, how to give back what the failed attempt held, and one more try."""

import gc
from collections.abc import Callable
from contextlib import contextmanager

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error on a GPU; on a CPU it is a RuntimeError that says so.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), is_out_of_memory(RuntimeError("no"))
    (True, False)
    """
    words = "can't allocate memory"
    return isinstance(error, torch.OutOfMemoryError) or words in str(error)


def free_memory() -> None:
    """Give back what the failed attempt held; to be called where its frames are gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_memory(work: Callable, batch: int, least: int = 1):
    """`work(batch=batch)`; where memory runs out, once more with half the batch.

    >>> def work(batch):
    ...     if batch > 4:
    ...         raise torch.OutOfMemoryError()
    ...     return batch
    >>> in_memory(work, 8)
    out of memory: once more with --batch 4
    4
    """
    try:
        return work(batch=batch)
    except RuntimeError as error:
        if not is_out_of_memory(error) or batch <= least:
            raise
    free_memory()  # not earlier: here the frames of the failed call are gone
    half = max(least, batch // 2)
    print(f"out of memory: once more with --batch {half}", flush=True)
    return work(batch=half)


@contextmanager
def phase(name: str):
    """Note on an error of memory in which phase it was raised: "rollout" or "update"."""
    try:
        yield
    except RuntimeError as error:
        error.phase = getattr(error, "phase", name)
        raise
