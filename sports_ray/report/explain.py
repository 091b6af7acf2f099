"""Grad-CAM: where in a photograph the evidence for a class lies (Selvaraju et al. 2017, sec. 3), for any timm model.

The map is taken at the last layer that still has places and whose places the score depends on. That is the output of
`forward_features` for ConvNets and Swin. A ViT that classifies by its class token ignores the patches of its last layer:
there it is what the last block attends to, and each place counts with its own gradient (HiResCAM, Draelos & Carin 2020,
which is Grad-CAM where a score is a mean over places). A map of fewer than MIN_SIDE fields a side locates nothing: then
an earlier layer is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sports_ray.config import ImageSpec
from sports_ray.data import augment
from sports_ray.data.decode import decode
from sports_ray.errors import WeightsError

MIN_SIDE = 4
FEATURES = "forward_features"


@dataclass(frozen=True, slots=True)
class Seer:
    """A trained model, ready to be asked where it looks."""

    name: str
    model: nn.Module
    """In evaluation mode, on `device`."""
    classes: tuple[str, ...]
    spec: ImageSpec
    device: torch.device
    max_pixels: int
    """Photographs with more are refused as bombs."""
    multilabel: bool = False
    """Whether classes are independent: their probabilities are sigmoids."""

    def view(self, data: bytes) -> Tensor:
        """What the model sees of an image file: uint8 [3, S, S] RGB. DataError if it cannot be decoded."""
        pixels = decode(data, max_pixels=self.max_pixels)
        return augment.evaluate(pixels, self.spec, self.spec.eval_size).contiguous()

    def look(self, views: Tensor, targets: Tensor | None = None) -> Cam:
        """Grad-CAM of views, uint8 [B, 3, S, S]; see `grad_cam`."""
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None] * 255 for values in (self.spec.mean, self.spec.std)
        )
        images = (views.to(self.device, torch.float32) - mean) / std
        cam = grad_cam(self.model, images, None if targets is None else targets.to(self.device))
        return replace(cam, probabilities=cam.logits.sigmoid()) if self.multilabel else cam


@dataclass(frozen=True, slots=True)
class Cam:
    """On the CPU."""

    probabilities: Tensor
    """float32 [B, K]."""
    targets: Tensor
    """int64 [B]: the class whose evidence is shown."""
    heat: Tensor
    """float32 [B, S, S] in [0, 1], the largest of an image 1; all 0 where nothing speaks for the class."""
    layer: str
    """Where the map was taken: a module, or forward_features."""
    logits: Tensor
    """float32 [B, K]."""


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor | None = None) -> Cam:
    """Grad-CAM of normalised images, float32 [B, 3, S, S]; targets int64 [B], by default each image's own top class.

    heat = ReLU(sum over channels c of w_c A_c), w_c = mean over places of d logit / d A_c. The model is in evaluation
    mode, so that images do not influence each other. Raises WeightsError for a model without a map of places."""
    layers = dict(_layers(model))
    kept: dict[str, Tensor] = {}
    hooks = [module.register_forward_hook(_keeper(kept, name)) for name, module in layers.items()]
    try:
        with torch.enable_grad():
            features = model.forward_features(images.detach().requires_grad_())  # type: ignore[operator]
            logits = model.forward_head(features)  # type: ignore[operator]
            chosen = logits.detach().argmax(1) if targets is None else targets
            score = logits.gather(1, chosen[:, None]).sum()
    finally:
        for hook in hooks:
            hook.remove()
    outputs: dict[str, Any] = {FEATURES: features, **{name: kept.get(name) for name in layers}}
    tensors = {name: output for name, output in outputs.items() if isinstance(output, Tensor)}
    gradients = torch.autograd.grad(score, list(tensors.values()), allow_unused=True) if tensors else ()
    layer, activation, gradient = _best_map(model, images.shape[-2:], tensors, gradients)
    # Behind a class token each place has a slope of its own, and their mean is that of none.
    by_place = tensors[layer].ndim == 3 and layer != FEATURES
    weights = gradient if by_place else gradient.mean((2, 3), keepdim=True)
    heat = (weights * activation).sum(1, keepdim=True).relu()
    heat = interpolate(heat, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat / heat.amax((1, 2), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    scores = logits.detach().float()
    return Cam(scores.softmax(1).cpu(), chosen.cpu(), heat.cpu(), layer, scores.cpu())


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose output may carry the map, the last ones first: timm's feature layers, before them what they attend to."""
    modules = dict(model.named_modules())
    infos: Any = getattr(model, "feature_info", None) or []
    for info in reversed(list(infos)):
        name = info.get("module", "") if isinstance(info, dict) else ""
        for path in (f"{name}.norm1", name):
            if path in modules and name:
                yield path, modules[path]


def _keeper(kept: dict[str, Tensor], name: str) -> Any:
    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            kept[name] = output

    return keep


def _best_map(
    model: nn.Module, size: Sequence[int], tensors: dict[str, Tensor], gradients: Sequence[Tensor | None]
) -> tuple[str, Tensor, Tensor]:
    """(layer, activation, gradient), both [B, C, h, w]: of the first layer with fields enough, else of that with most."""
    found: list[tuple[int, str, Tensor, Tensor]] = []
    for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
        if gradient is None:
            continue
        activation, slope = (_as_map(one.detach().float(), model, size) for one in (tensor, gradient))
        if activation is None or slope is None or not bool(slope.any()):
            continue
        side = min(activation.shape[-2:])
        if side >= MIN_SIDE:
            return name, activation, slope
        found.append((side, name, activation, slope))
    if not found:
        what = f"Grad-CAM of {type(model).__name__}"
        raise WeightsError(what, got="no layer with places that the score depends on", want="a ConvNet, ViT or Swin")
    return max(found, key=lambda one: one[0])[1:]


def _as_map(tensor: Tensor, model: nn.Module, size: Sequence[int]) -> Tensor | None:
    """Features of any layout as [B, C, h, w]; None if they have no places."""
    if tensor.ndim == 4:
        return tensor.permute(0, 3, 1, 2) if _is_channels_last(tensor, model) else tensor
    if tensor.ndim != 3:
        return None
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    for extra in dict.fromkeys((prefix, 0, 1, 2)):
        grid = _grid(tensor.shape[1] - extra, model, size)
        if grid:
            return tensor[:, extra:].transpose(1, 2).unflatten(2, grid)
    return None


def _is_channels_last(tensor: Tensor, model: nn.Module) -> bool:
    """Swin's features are NHWC. timm says so in `output_fmt`; hieradet and others tell by the sides: a map is square."""
    if str(getattr(model, "output_fmt", "")).endswith("NHWC"):
        return True
    return tensor.shape[1] == tensor.shape[2] != tensor.shape[3]


def _grid(tokens: int, model: nn.Module, size: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of so many patches."""
    embed: Any = getattr(model, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        height, width = embed.dynamic_feat_size(tuple(size))
        if height * width == tokens:
            return int(height), int(width)
    side = math.isqrt(max(0, tokens))
    return (side, side) if side > 0 and side * side == tokens else None
