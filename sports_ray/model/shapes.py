"""Models without values: for questions that names and shapes answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FILLS = {"uniform_", "normal_", "trunc_normal_", "erfinv_", "clamp_", "fill_", "zero_"}


class _Unfilled(TorchFunctionMode):
    """Leaves out what gives tensors their first values. On the meta device it changes nothing, and takes three quarters of
    the time in which a large model is built."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in _FILLS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        return function(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules built in the block lie on torch's meta device: they have names and shapes, and take no memory. Nothing is
    drawn from torch's generator."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _Unfilled():
        yield
