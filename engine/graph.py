"""A function as a CUDA graph: launching a small model's kernels one by one takes longer than running them."""

import warnings
from functools import cache

import torch


@cache
def side_stream(device) -> torch.cuda.Stream:
    """The one stream on which graphs are captured: each stream keeps cuBLAS's workspace for good."""
    return torch.cuda.Stream(device)


def capture_graph(step, arguments: tuple[torch.Tensor, ...]):
    """`step` as a CUDA graph, to be called with other tensors of these shapes; None where that fails.

    step has no outputs but the one it returns, and must not mind being run again with the same tensors.
    """
    inputs = [argument.clone() for argument in arguments]
    stream = torch.cuda.current_stream()
    try:
        graph = torch.cuda.CUDAGraph()
        side = side_stream(stream.device)
        side.wait_stream(stream)
        with torch.cuda.stream(side):  # a first run, in which libraries set themselves up
            expected = step(*inputs)
        stream.wait_stream(side)
        with torch.cuda.graph(graph, stream=side):
            result = step(*inputs)
        result.zero_()
        graph.replay()
        if not torch.allclose(result, expected, atol=0.5):
            raise RuntimeError("it computes something else")
    except RuntimeError as error:  # a kernel that waits for the device, too little memory ...
        reason = error
        while reason.__context__:  # the innermost one: what follows is that the capture broke off
            reason = reason.__context__
        warnings.warn(f"decoding without a CUDA graph, more slowly: {reason}", stacklevel=2)
        # A capture that breaks off leaves its own stream current.
        torch.cuda.set_stream(stream)
        return None

    def replay(*arguments):
        for kept, value in zip(inputs, arguments, strict=True):
            kept.copy_(value)
        graph.replay()
        return result

    return replay
