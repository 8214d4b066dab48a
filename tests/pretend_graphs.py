"""CUDA graphs and streams on the pretend card.

A graph notes operations on addresses. An address is a storage, made in the capture or outside, and a view.
"""

import gc
import weakref

import pretend_card
import torch
from pretend_card import on_card, state, storage_of, tensors_in

Tensor = torch.Tensor


class Address:
    def __init__(self, graph, tensor):
        self.made = graph.made.get(storage_of(tensor))  # (operation, result), where the capture made it
        self.storage = weakref.ref(storage_of(tensor))
        self.view = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        self.dtype = tensor.dtype

    def tensor(self, made: dict):
        storage = made[self.made] if self.made else self.storage()
        if storage is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered (it was freed)")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.view)


def mapped(function, value):
    if isinstance(value, (list, tuple)):
        return [mapped(function, part) for part in value]
    return function(value)


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, keep_graph=False):
        self.calls = []
        self.made = weakref.WeakKeyDictionary()

    def address(self, value):
        if not isinstance(value, Tensor):
            return value
        if on_card(value):
            return Address(self, value)
        if value.dim():
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
        return value.clone()  # a number, baked in

    def note(self, func, args, kwargs, given, result) -> None:
        old = {id(storage_of(tensor)) for tensor in given}
        fresh = []  # of each result: where it is made, unless it is an input or a view of one
        for tensor in tensors_in(result):
            is_new = id(storage_of(tensor)) not in old
            fresh.append((len(self.calls), len(fresh)) if is_new else None)
        if fresh and not any(fresh) and not func._schema.is_mutable:
            return  # of a view the address says it all
        arguments = mapped(self.address, args), {name: self.address(v) for name, v in kwargs.items()}
        for tensor, made in zip(tensors_in(result), fresh):
            if made:
                self.made[storage_of(tensor)] = made
        self.calls.append((func, *arguments, fresh))

    def replay(self) -> None:
        made = {}

        def look(value):
            return value.tensor(made) if isinstance(value, Address) else value

        with state(raw=True), torch.no_grad():
            for func, args, kwargs, fresh in self.calls:
                result = func(*mapped(look, args), **{name: look(v) for name, v in kwargs.items()})
                made |= {key: storage_of(t) for key, t in zip(fresh, tensors_in(result)) if key}
            for storage, key in self.made.items():  # what is still held outside has a fixed address
                storage.copy_(made[key])


class Capture:
    """torch.cuda.graph."""

    def __init__(self, graph, pool=None, stream=None, capture_error_mode="global"):
        self.graph = graph
        self.side = stream or Stream()

    def __enter__(self):
        gc.collect()
        self.before = pretend_card.card.stream
        pretend_card.card.stream = self.side
        pretend_card.card.capturing = self.graph

    def __exit__(self, kind, error, trace):
        pretend_card.card.capturing = None
        if error:  # as on a card, its stream stays in place
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            ) from error
        pretend_card.card.stream = self.before


class Stream:
    """Also an event, and a device to enter: there is one of each."""

    device = pretend_card.CARD

    def __init__(self, *args, **kwargs): ...
    def __enter__(self): ...
    def __exit__(self, *error): ...
    def record(self, stream=None): ...
    def wait_stream(self, other): ...
    def is_capturing(self):
        return pretend_card.card.capturing is not None

    def synchronize(self):
        pretend_card.card.wait("synchronize")
