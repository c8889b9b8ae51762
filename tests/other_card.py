"""A card that is none: tensors that are moved to `cuda:0` stay real, on the CPU, but count as being there.

What a card refuses is refused: an operation on tensors of both sides, numbers (of no dimension) and indices on the CPU
aside. So code for a GPU runs here from end to end, slowly, and a device that was forgotten is found.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

CARD, CPU = torch.device("cuda:0"), torch.device("cpu")
_INDEXING = ("index.Tensor", "index_put.default", "index_put_.default", "_index_put_impl_.default")


class _Card:
    """Which storages count as being on the card. They are kept, so that no address is used twice."""

    def __init__(self):
        self.storages, self.anywhere = {}, {}
        self.visits = 0

    def put(self, tensor, where=None):
        storage = tensor.untyped_storage()
        (self.storages if where is None else where)[storage._cdata] = storage
        return tensor

    def has(self, tensor):
        return tensor.untyped_storage()._cdata in self.storages

    def may_be_anywhere(self, tensor):
        """Made by a backward pass, which takes devices from what the CPU says they are."""
        return tensor.untyped_storage()._cdata in self.anywhere


class _Operations(TorchDispatchMode):
    """Refuses what mixes both sides; what comes of the card's tensors is on the card."""

    def __init__(self, card):
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = str(func).removeprefix("aten.")
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        if name in _INDEXING:
            given = [args[0], *args[2:3]]
        here = [x for x in given if self.card.has(x)]
        free = [x for x in given if self.card.may_be_anywhere(x)]
        there = [x for x in given if x.ndim and not self.card.has(x) and not self.card.may_be_anywhere(x)]
        if here and there and not name.startswith(("copy_", "_to_copy")):
            raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
        asked = kwargs.pop("device", None)
        found = func(*args, **kwargs)
        backward = torch._C._current_graph_task_id() != -1
        sure = asked is not None and not backward
        if asked.type == "cuda" if sure else here:
            tree_map(lambda x: self.card.put(x) if isinstance(x, torch.Tensor) else x, found)
        elif backward and (free or not given):
            self.card.put(found, self.card.anywhere)
        return found


class _Devices(TorchFunctionMode):
    """Moves, and what a tensor says of its device."""

    def __init__(self, card):
        super().__init__()
        self.card = card

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return CARD if self.card.has(args[0]) else func(*args, **kwargs)
        if func == torch.Tensor.is_cuda.__get__:
            return self.card.has(args[0])
        if func is torch.Tensor.numpy and self.card.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu()")
        if func is torch.Tensor.cpu:
            return self._moved(args[0], CPU, None, False)
        if func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs.pop("device")
            return self.card.put(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _to(self, tensor, *args, device=None, dtype=None, copy=False, **_):
        for value in args:
            if isinstance(value, torch.Tensor):
                device, dtype = (CARD if self.card.has(value) else CPU), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.device | str):
                device = torch.device(value)
        return self._moved(tensor, None if device is None else torch.device(device), dtype, copy)

    def _moved(self, tensor, device, dtype, copy):
        """On the side of `device` (None: its own), in `dtype`."""
        on_card = self.card.has(tensor)
        wanted = on_card if device is None else device.type == "cuda"
        if on_card == wanted and not copy and dtype in (None, tensor.dtype):
            return tensor
        if tensor.requires_grad and torch.is_grad_enabled():  # what is moved while something is trained
            found = tensor.to(dtype=dtype or tensor.dtype, copy=True)
        else:
            with _disable_current_modes():  # plain data, as `Module.to` wants it
                found = torch.empty_like(tensor, dtype=dtype, requires_grad=False).copy_(tensor.detach())
        self.card.visits += wanted and not on_card
        return self.card.put(found) if wanted else found


@contextmanager
def other_card():
    """While active, `cuda:0` is there; yields the card, whose `visits` count what was moved onto it."""
    card = _Card()
    with _Devices(card), _Operations(card):
        yield card
