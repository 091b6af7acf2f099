"""Exponential moving average of the weights, in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sports_ray.errors import RunError


class Ema:
    """Averages a model's parameters and floating buffers; integer buffers are copied. Make it after weights are loaded.

    shadow <- d * shadow + (1 - d) * weights; with warm-up d = min(decay, (1 + t) / (10 + t)) at update t = 0, 1, ...
    (tf.train.ExponentialMovingAverage's `num_updates`), else d = decay. Only persistent buffers are held, so that the
    names are those of `state_dict()`.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        """`decay` in [0, 1): share of the shadow kept at each update."""
        self.decay = decay
        self.warmup = warmup
        self._shadow = {name: _shadow_of(tensor) for name, tensor in model.state_dict().items()}

    def decay_at(self, step: int) -> float:
        """Share of the shadow kept at update `step`, from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the model's weights after optimiser step `step` (from 0)."""
        weights = model.state_dict()
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, shadow in self._shadow.items():
            if shadow.is_floating_point():
                averages.append(shadow)
                values.append(weights[name].float())
            else:
                shadow.copy_(weights[name])
        torch._foreach_lerp_(averages, values, 1.0 - self.decay_at(step))

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by name, live and not copied; the form that `torch.func.functional_call` takes."""
        return dict(self._shadow)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors()` gave, bit for bit. Raises RunError on other names, shapes or dtypes."""
        wrong = sorted(tensors.keys() ^ self._shadow.keys())
        wrong += [
            name
            for name, shadow in self._shadow.items()
            if name in tensors and (tensors[name].shape != shadow.shape or tensors[name].dtype != shadow.dtype)
        ]
        if wrong:
            raise RunError(
                "EMA of the checkpoint", got=f"other {', '.join(wrong[:5])}", want="the model's names and shapes"
            )
        for name, shadow in self._shadow.items():
            shadow.copy_(tensors[name])


def _shadow_of(tensor: Tensor) -> Tensor:
    # Keeps strides: a contiguous shadow of channels_last weights would make each update several times slower.
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype=dtype, copy=True, memory_format=torch.preserve_format)
