"""A pretend CUDA card: the GPU path of a script, run with real data on a machine that has no card.

    python tests/pretend_card.py [--gib 24] train.py --model tiny ...   # the script sees one card
    card = pretend_card.install(gib=24)                                 # or in a process of its own

Every tensor is a CPU tensor. One is "on the card" when its storage carries a mark; then its `device` says
cuda:0. `Front` turns device="cuda" into the mark. `Below`, under autograd, hands the mark on from inputs to
outputs, and raises in CUDA's words where tensors of both sides meet. Data, autograd, files and libraries are
real, so that a run can be compared with the CPU's digit by digit. By the marks it keeps

    memory  Bytes of living storages, in blocks of 512. OutOfMemoryError beyond `gib`, or at the n-th
            allocation from `card.fail_at(n)` on.
    waits   `card.waits` counts them by kind and place: item, tolist, nonzero, a boolean index, a copy to the
            host; and copies to the card ("h2d"), unless from pinned memory with non_blocking.
    graphs  A capture refuses waits and host copies, and notes operations with the storages they read and
            write. A replay runs them on these, and raises where one has been freed (pretend_graphs.py).

It can't show speed, CUDA's numerics, its attention kernels, what its autocast does otherwise than the CPU's,
streams in parallel, copies that are read before they have arrived, fragmentation, workspaces, NCCL, other
libraries' kernels, nor code in C++ that asks for a device. Its random numbers are the CPU's own.
"""

import os
import runpy
import subprocess
import sys
import threading
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import bitsandbytes  # noqa: F401  (once it sees a card it looks for its CUDA library)
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Tensor = torch.Tensor
CARD = torch.device("cuda", 0)
HERE = os.path.abspath(__file__)
PACKAGES = os.path.dirname(os.path.dirname(torch.__file__))
DEVICE = torch._C.TensorBase.device
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
UNKNOWN_SHAPE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
card = None


class State(threading.local):
    raw = False  # inside an operation: devices as they are
    ambient = False  # does the call at hand belong to the card? For what C++ makes out of nothing
    forced = None  # the side that a factory was asked for; True: the card


STATE = State()


@contextmanager
def state(**values):
    before = {name: getattr(STATE, name) for name in values}
    vars(STATE).update(values)
    try:
        yield
    finally:
        vars(STATE).update(before)


class Card:
    def __init__(self, gib: float):
        self.limit = int(gib * 2**30)
        self.used = self.peak = self.allocations = 0
        self.failing = None  # the number of the allocation that fails
        self.waits = Counter()
        self.capturing = None
        self.stream = None

    def take(self, storage):
        """Mark a storage as the card's."""
        size = -(-storage.nbytes() // 512) * 512
        self.allocations += 1
        if self.allocations == self.failing or self.used + size > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
        storage.on_card = True
        self.used += size
        self.peak = max(self.peak, self.used)
        weakref.finalize(storage, self.give_back, size).atexit = False
        return storage

    def give_back(self, size: int) -> None:
        self.used -= size

    def fail_at(self, n: int) -> None:
        self.failing = self.allocations + n

    def wait(self, kind: str) -> None:
        if self.capturing:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({kind})")
        self.waits[kind, place()] += 1

    def copies(self) -> int:
        """Copies to the card for which the host has waited."""
        return sum(n for (kind, _), n in self.waits.items() if kind == "h2d")

    def other_waits(self) -> int:
        return self.waits.total() - self.copies()

    def report(self) -> str:
        mib = 2**20
        lines = [f"pretend card: {self.peak / mib:.1f} MiB at most, {self.used / mib:.1f} MiB at the end"]
        lines += [f"{n:>8} {kind:<20} {where}" for (kind, where), n in self.waits.most_common(20)]
        return "\n".join(lines)


def place() -> str:
    """file:line of the innermost frame outside of all packages."""
    frame = sys._getframe(2)
    while frame.f_back:
        file = frame.f_code.co_filename
        if file != HERE and not file.startswith((PACKAGES, sys.base_prefix, "<")):
            return f"{os.path.relpath(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def raw_type(tensor) -> str:
    """cpu or meta, without asking Front, which would ask in turn."""
    with torch._C.DisableTorchFunction():
        return DEVICE.__get__(tensor).type


def storage_of(tensor):
    with torch._C.DisableTorchFunction():
        return torch._C.TensorBase.untyped_storage(tensor)


def on_card(tensor) -> bool:
    return getattr(storage_of(tensor), "on_card", False)


def is_pinned(tensor) -> bool:
    return getattr(storage_of(tensor), "pinned", False)


def tensors_in(value) -> list:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for part in value for tensor in tensors_in(part)]


def mark(value, but=()):
    """All tensors in it are on the card from here on, except those that share a storage with `but`."""
    old = {id(storage_of(tensor)) for tensor in but}
    for tensor in tensors_in(value):
        storage = storage_of(tensor)
        if raw_type(tensor) == "cpu" and not on_card(tensor) and id(storage) not in old:
            card.take(storage)
    return value


def is_cuda(device) -> bool:
    return type(device) is int or (device is not None and torch.device(device).type == "cuda")


# --------------------------------------------------------------------------------------------------
# Below autograd: from inputs to outputs.


class Below(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if STATE.raw:
            return func(*args, **kwargs)
        given = tensors_in(args) + tensors_in(kwargs)
        here = any(map(on_card, given)) if given else STATE.ambient
        makes_new = not given or "like" in func.__name__ or "new_" in func.__name__
        if makes_new and STATE.forced is not None:
            here = STATE.forced
        if not here:
            return func(*args, **kwargs)
        check(func, args, given)
        with state(raw=True):
            result = func(*args, **kwargs)
        mark(result, given)
        if card.capturing:
            card.capturing.note(func, args, kwargs, given, result)
        return result


def check(func, args, given) -> None:
    """Raise where CUDA would; count where the host waits or copies."""
    if func is aten.copy_.default:
        target, source = given
        to_card = on_card(target)
        on_host = source if to_card else target
        non_blocking = len(args) > 2 and args[2]
        if to_card != on_card(source) and not (is_pinned(on_host) and non_blocking):
            card.wait("h2d" if to_card else "copy to the host")
        return
    if func in INDEXING:
        indices = tensors_in(args[1])
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            card.wait("boolean index")
        if not all(map(on_card, indices)):
            card.wait("h2d")
        given = [args[0], *tensors_in(args[2:])]
    elif UNKNOWN_SHAPE & set(func.tags):
        card.wait(func.__name__)
    for tensor in given:  # a number without dimensions may come from either side
        if tensor.dim() and tensor.numel() and raw_type(tensor) == "cpu" and not on_card(tensor):
            raise RuntimeError(f"{MIXED} ({func}, {tuple(tensor.shape)} is on the CPU)")


class Move(torch.autograd.Function):
    """A copy to the other side, and of its gradient back."""

    @staticmethod
    def forward(ctx, tensor, to_card):
        ctx.to_card = to_card
        with state(raw=True):
            copy = tensor.detach().clone()
        return mark(copy) if to_card else copy

    @staticmethod
    def backward(ctx, gradient):
        return Move.apply(gradient, not ctx.to_card), None


def move(tensor, to_card: bool, non_blocking: bool = False):
    if raw_type(tensor) != "cpu" or on_card(tensor) == to_card:
        return tensor
    if not (to_card and is_pinned(tensor) and non_blocking):
        card.wait("h2d" if to_card else "copy to the host")
    return Move.apply(tensor, to_card)


# --------------------------------------------------------------------------------------------------
# At the top: .to, .cpu, device="cuda" and the like.


def to(tensor, *args, device=None, other=None, **kwargs):
    if args and isinstance(args[0], Tensor):
        other, *args = args
    elif args and not isinstance(args[0], torch.dtype):
        device, *args = args
    if other is not None:
        device = other.device
        kwargs["dtype"] = other.dtype
    if device is not None and (is_cuda(device) or torch.device(device).type == "cpu"):
        non_blocking = kwargs.get("non_blocking", False) or True in args  # behind a dtype, or None
        moved = move(tensor, is_cuda(device), non_blocking)
        if moved is not tensor:
            kwargs.pop("copy", None)  # it is one
        tensor = moved
        device = "cpu"
    args = args if device is None else (device, *args)
    return Tensor.to(tensor, *args, **kwargs)


def numpy(tensor, *args, **kwargs):
    if on_card(tensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
    return Tensor.__array__(tensor, *args) if args else Tensor.numpy(tensor, **kwargs)


def tolist(tensor):
    if on_card(tensor):
        card.wait("tolist")
    with state(raw=True):
        return Tensor.tolist(tensor)


def pin_memory(tensor, *args):
    copy = tensor.clone()
    storage_of(copy).pinned = True
    return copy


def new_tensor(tensor, *args, device=None, **kwargs):
    made = Tensor.new_tensor(tensor, *args, **kwargs)
    return move(made, is_cuda(device or tensor.device))


METHODS = {
    Tensor.to: to,
    Tensor.cuda: lambda tensor, *args, **kwargs: move(tensor, True),
    Tensor.cpu: lambda tensor, *args, **kwargs: move(tensor, False),
    Tensor.numpy: numpy,
    Tensor.__array__: numpy,
    Tensor.tolist: tolist,
    Tensor.new_tensor: new_tensor,
    Tensor.pin_memory: pin_memory,
    Tensor.is_pinned: lambda tensor, *args: is_pinned(tensor),
}


class Front(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if STATE.raw:
            return func(*args, **kwargs)
        if func in METHODS:
            return METHODS[func](*args, **kwargs)
        if kwargs.pop("pin_memory", False):
            return pin_memory(func(*args, **kwargs))
        device = kwargs.get("device")
        if device is None:
            with state(ambient=any(map(on_card, tensors_in(args) + tensors_in(kwargs)))):
                return func(*args, **kwargs)
        on_meta = torch.device(device).type == "meta"
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and not on_meta:
            made = func(*args, **kwargs | {"device": None})
            return move(made, is_cuda(device))
        if is_cuda(device):
            kwargs["device"] = "cpu"
        with state(ambient=is_cuda(device), forced=is_cuda(device)):
            made = func(*args, **kwargs)
        return mark(made) if is_cuda(device) else made


MODES = [Below, Front]  # of every thread

# --------------------------------------------------------------------------------------------------
# What stands under the names of torch.


def fakes() -> dict:
    from pretend_graphs import Capture, Graph, Stream  # they look at this module

    total = max(card.limit, 4 * 2**30)  # transformers wants to leave 1.2 GiB free
    about = SimpleNamespace(name="pretend card", total_memory=total, major=8, minor=9)
    # fmt: off
    answers = dict(
        is_available=True, is_initialized=True, _initialized=True, device_count=1, current_device=0,
        _is_in_bad_fork=False, _lazy_init=None, set_device=None, empty_cache=None, is_bf16_supported=True,
        get_device_properties=about, get_device_name=about.name, get_device_capability=(8, 9),
        init=None, manual_seed=None, manual_seed_all=None,
    )
    # fmt: on
    found = {name: lambda *args, value=value, **kwargs: value for name, value in answers.items()}
    return found | dict(
        device=Stream,
        Stream=Stream,
        Event=Stream,
        stream=Stream,
        CUDAGraph=Graph,
        graph=Capture,
        set_stream=lambda stream: setattr(card, "stream", stream),
        current_stream=lambda device=None: card.stream,
        synchronize=lambda device=None: card.wait("synchronize"),
        is_current_stream_capturing=lambda: card.capturing is not None,
        reset_peak_memory_stats=lambda device=None: setattr(card, "peak", card.used),
        memory_allocated=lambda device=None: card.used,
        memory_reserved=lambda device=None: card.used,
        max_memory_allocated=lambda device=None: card.peak,
        mem_get_info=lambda device=None: (total - card.used, total),
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda rng, device=None: torch.set_rng_state(rng),
    )


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls)


class Autocast(torch.autocast):
    """Tensors are the CPU's, so it is the CPU's autocast that counts."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if is_cuda(device_type) else device_type, *args, **kwargs)


def backward_in_a_thread(plain):
    """A card's backward pass has a thread of its own; on the CPU's a failed one's tasks stay queued."""

    def backward(tensors, *args, **kwargs):
        errors = []

        def work():
            try:
                with state(ambient=True):
                    plain(tensors, *args, **kwargs)
            except BaseException as error:
                errors.append(error)

        if not any(map(on_card, tensors_in(tensors))):
            return plain(tensors, *args, **kwargs)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors.pop()

    return backward


def patch_threads_and_processes(gib: float) -> None:
    """Modes belong to threads; scripts that a script starts see the card, too."""
    run_plainly = threading.Thread.run
    start_plainly = subprocess.Popen.__init__

    def run(self):
        with ExitStack() as stack:
            for mode in MODES:
                stack.enter_context(mode())
            run_plainly(self)

    def start(self, command, *args, **kwargs):
        if isinstance(command, list) and command[0] == sys.executable and str(command[1]).endswith(".py"):
            command = [command[0], HERE, "--gib", str(gib), *command[1:]]
        start_plainly(self, command, *args, **kwargs)

    threading.Thread.run = run
    subprocess.Popen.__init__ = start


def install(gib: float = 24) -> Card:
    """From here on this process has a card."""
    global card
    card = Card(gib)
    sys.modules["pretend_card"] = sys.modules[__name__]
    for name, value in fakes().items():
        for module in (torch.cuda, torch.cuda.random):
            setattr(module, name, value)
    card.stream = torch.cuda.Stream()
    for name in ("is_available", "device_count", "synchronize", "current_stream", "empty_cache"):
        setattr(torch.accelerator, name, getattr(torch.cuda, name))
    torch.accelerator.current_device_index = torch.accelerator.current_device_idx = torch.cuda.current_device
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    torch.version.cuda = "12.8"
    torch.Generator = Generator
    Tensor.device = property(lambda self: CARD if not STATE.raw and on_card(self) else DEVICE.__get__(self))
    Tensor.is_cuda = property(lambda self: self.device.type == "cuda")
    torch.autocast = torch.amp.autocast = Autocast
    torch.autograd.backward = backward_in_a_thread(torch.autograd.backward)
    # What these modules call is to be seen, too.
    for module in (torch.autograd, torch.functional, torch.nn.functional):
        for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
            if hasattr(module, name):
                setattr(module, name, lambda *args: False)
    torch.serialization.register_package(
        1,
        lambda storage: "cuda:0" if getattr(storage, "on_card", False) else None,
        lambda storage, location: card.take(storage) if location.startswith("cuda") else None,
    )
    patch_threads_and_processes(gib)
    for mode in MODES:
        mode().__enter__()
    return card


def main() -> None:
    argv = sys.argv[1:]
    gib = 24.0
    if argv[0] == "--gib":
        gib = float(argv[1])
        argv = argv[2:]
    sys.argv = argv
    sys.path[:1] = [os.path.dirname(os.path.abspath(argv[0])), os.path.dirname(HERE)]
    install(gib)
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        print(card.report(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
