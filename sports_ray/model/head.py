"""Heads of several layers, written as words such as `512-relu-dropout0.5-linear`, in place of a model's one linear layer."""

from __future__ import annotations

import re

import torch
from torch import nn

from sports_ray.config import LoopConfig
from sports_ray.errors import ConfigError

LINEAR = "linear"
"""The model's own classifier."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
_WANT = "words joined by -: widths, bn, relu, gelu, dropoutP, and linear once, after which only dropoutP may come"
_CURE = "for example 512-relu-dropout0.5-linear"
_WIDEST = 65_536


def head_layers(text: str, features: int, classes: int) -> list[nn.Module]:
    """The layers of a head, with torch's own initialisation: float [n, features] -> [n, classes].

    Words, each a layer: a width N (linear layer to N features), `bn`, `relu`, `gelu`, `dropoutP` with P in [0, 1), and
    `linear`, the layer to the classes. Raises ConfigError for any other text."""
    words = text.split("-")
    last = words.index(LINEAR) if words.count(LINEAR) == 1 else len(words)
    layers: list[nn.Module] = []
    for place, word in enumerate(words):
        layer = _layer(word, features, classes)
        if layer is None or last == len(words) or (place > last and not isinstance(layer, nn.Dropout)):
            raise ConfigError("model.head", got=repr(text), want=_WANT, cure=_CURE)
        features = layer.out_features if isinstance(layer, nn.Linear) else features
        layers.append(layer)
    return layers


def _layer(word: str, features: int, classes: int) -> nn.Module | None:
    if word in _ACTIVATIONS:
        return _ACTIVATIONS[word]()
    if word == "bn":
        return nn.BatchNorm1d(features)
    if word == LINEAR:
        return nn.Linear(features, classes)
    if word.isdecimal() and word.isascii() and 0 < int(word) <= _WIDEST:
        return nn.Linear(features, int(word))
    rate = re.fullmatch(r"dropout(0?\.\d+|0)", word)
    return nn.Dropout(float(rate[1])) if rate else None


def replace_head(model: nn.Module, text: str, classes: int) -> None:
    """Puts the head in the place of a timm model's linear classifier. Raises ConfigError where there is not one such."""
    old = model.get_classifier()  # type: ignore[operator]
    name = next((name for name, module in model.named_modules() if module is old), "")
    if not name or not isinstance(old, nn.Linear):
        got = f"{text} for {type(model).__name__}, whose classifier is no single linear layer"
        raise ConfigError("model.head", got=got, want=LINEAR, cure="--set model.head=linear, or another model")
    model.set_submodule(name, nn.Sequential(*head_layers(text, old.in_features, classes)))


def check_head(text: str, loop: LoopConfig, workers: int) -> None:
    """ConfigError for a head that cannot be read, or whose batch norm would never see two images; `workers`: the most."""
    with torch.device("meta"):
        layers = head_layers(text, 1, 1)
    if not any(isinstance(layer, nn.BatchNorm1d) for layer in layers):
        return
    most = -(-loop.global_batch // (loop.lanes if loop.strict else max(1, workers)))
    most = min(most, loop.micro_batch or most)
    if most < 2:
        cure = "a larger --set loop.global_batch or loop.micro_batch" + (", or fewer loop.lanes" if loop.strict else "")
        raise ConfigError(f"model.head {text}", got="one image a forward pass", want="two or more for bn", cure=cure)
