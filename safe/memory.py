"""Memory that runs out: what says so, and how to give back what the failed attempt held."""

import gc

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
