"""Batch norm where an image is alone: one value a channel has no variance, and torch refuses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def lone_image(model: nn.Module, images: int) -> Iterator[None]:
    """Where the block's batch has one image, batch norms that get a single value a channel of it normalise that by their
    running statistics, and leave these.

    Such a norm stands in a head, or where a map has shrunk to 1 x 1. An image is alone where a step's images do not divide
    evenly, or after memory ran out."""
    if images > 1:
        yield
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.training = inputs[0].numel() > inputs[0].shape[1]

    def after(norm: nn.Module, inputs: Any, output: Any) -> None:
        norm.training = True

    hooks = [norm.register_forward_pre_hook(before) for norm in norms]
    hooks += [norm.register_forward_hook(after) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm in norms:
            norm.training = True
