"""The pretend card without data: what a model of any size would hold on it.

Large floating tensors on the card are meta tensors: they have a shape, and the card counts their bytes, but
no numbers. What the host reads from them is zero. Small tensors and indices are real.
"""

import pretend_card
import torch
from pretend_card import INDEXING, STATE, is_cuda, on_card, raw_type, state, storage_of, tensors_in
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Tensor = torch.Tensor
LEAST = 4096  # numbers; smaller tensors are real
# What autocast computes in its own precision: done here, since it passes meta tensors by.
LOWER = ("linear", "matmul", "__matmul__", "bmm", "conv3d", "scaled_dot_product_attention")


def is_hollow(tensor) -> bool:
    return raw_type(tensor) == "meta" and on_card(tensor)


def take(tensor):
    if not on_card(tensor):
        pretend_card.card.take(storage_of(tensor))
    return tensor


def without_data(value):
    """The same shapes as meta tensors; numbers stay."""
    if isinstance(value, Tensor) and raw_type(value) == "cpu" and value.dim():
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return [without_data(part) for part in value]
    return value


def places_of(indices) -> list:
    """Boolean indices, which are real, as the places that they choose: else nobody knew how many."""
    places = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool
        places += index.nonzero(as_tuple=True) if is_mask else [index]
    return places


class HollowBelow(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = tensors_in(args) + tensors_in(kwargs)
        if STATE.raw or not any(map(is_hollow, given)):
            return func(*args, **kwargs)
        with state(raw=True):
            if func is aten._local_scalar_dense.default:
                return 0.0
            if func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if func is aten.copy_.default and not is_hollow(args[0]):
                return args[0].zero_()
            if func in INDEXING:
                args = (args[0], places_of(args[1]), *args[2:])
            if "device" in kwargs:
                kwargs["device"] = torch.device("meta")
            kwargs = {name: without_data(value) for name, value in kwargs.items()}
            result = func(*without_data(args), **kwargs)
        old = {id(storage_of(tensor)) for tensor in given}
        for tensor in tensors_in(result):
            if raw_type(tensor) == "meta" and id(storage_of(tensor)) not in old:
                take(tensor)
        return result


class HollowFront(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if STATE.raw:
            return func(*args, **kwargs)
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return moved(func, *args, **kwargs)
        if func is Tensor.tolist and is_hollow(args[0]):
            return torch.zeros(args[0].shape).tolist()
        makes = func not in (torch.tensor, torch.as_tensor, torch.asarray)
        if makes and kwargs.get("device") is not None and is_cuda(kwargs["device"]):
            with state(raw=True):
                made = func(*args, **kwargs | {"device": "meta"})
            # What is empty will grow: the cache.
            if made.is_floating_point() and not 0 < made.numel() <= LEAST:
                return take(made)
        if func.__name__ in LOWER and any(map(is_hollow, tensors_in(args))):
            args, kwargs = lowered(args, kwargs)
            if func.__name__ == "scaled_dot_product_attention":
                return attention(*args, **kwargs)
        return func(*args, **kwargs)


def moved(func, tensor, *args, **kwargs):
    """`to`, `cuda` and `cpu` of a tensor that is hollow, or becomes so."""
    other = [part for part in args if isinstance(part, Tensor)]
    device = kwargs.get("device") or next((p for p in args if isinstance(p, (str, int, torch.device))), None)
    dtype = kwargs.get("dtype") or next((p for p in args if isinstance(p, torch.dtype)), tensor.dtype)
    if func is not Tensor.to:
        device = "cuda" if func is Tensor.cuda else "cpu"
    if other:
        device = other[0].device
        dtype = other[0].dtype
    large = tensor.is_floating_point() and tensor.numel() > LEAST
    if is_hollow(tensor):
        if device is not None and torch.device(device).type == "cpu":
            with state(raw=True):
                return torch.zeros(tensor.shape, dtype=dtype)
        return tensor if dtype == tensor.dtype else Tensor.to(tensor, dtype)
    if large and raw_type(tensor) == "cpu" and not on_card(tensor) and device is not None and is_cuda(device):
        with state(raw=True):
            return take(torch.empty(tensor.shape, dtype=dtype, device="meta"))
    return func(tensor, *args, **kwargs)


def lowered(args, kwargs):
    if not torch.is_autocast_enabled("cpu"):  # see pretend_card.Autocast
        return args, kwargs
    dtype = torch.get_autocast_dtype("cpu")

    def cast(value):
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return [cast(value) for value in args], {name: cast(value) for name, value in kwargs.items()}


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """As CUDA's fused kernels hold memory: flash without a mask, memory-efficient with one."""
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, scale=scale)[0]
    if attn_mask.dtype == torch.bool:
        with state(raw=True):  # as numbers, which the kernel adds
            attn_mask = take(torch.empty(attn_mask.shape, dtype=q.dtype, device="meta"))
    length = attn_mask.shape[-1]
    if length % 8:
        attn_mask = torch.nn.functional.pad(attn_mask, (0, 8 - length % 8))[..., :length]
    attn_mask = attn_mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    with_gradient = torch.is_grad_enabled()
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, attn_mask, with_gradient, 0.0, is_causal, scale=scale)[0]


def install(gib: float) -> pretend_card.Card:
    pretend_card.MODES += [HollowBelow, HollowFront]
    return pretend_card.install(gib)
