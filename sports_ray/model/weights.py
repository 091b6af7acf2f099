"""Loads weights into a model, says how much of the backbone they cover, and refuses what covers too little."""

from __future__ import annotations

import difflib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import _builder
from torch import Tensor, nn

from sports_ray.errors import WeightsError
from sports_ray.model.build import ALIASES, head_parameters, resolve_name
from sports_ray.model.source import fetch_pretrained, file_sha256, read_sidecar, read_tensors

logger = logging.getLogger(__name__)

MIN_COVERAGE = 0.99
"""Share of the backbone that weights must bring; below it they are those of another model."""
SEARCH_SECONDS = 4.0
"""Time spent on finding the model that refused weights would fit."""

_patching = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReport:
    """What was loaded from where."""

    source: str
    """A hub id, a URL, a path, or `none`."""
    sha256: str = ""
    """Hex sha256 of the file; empty for `none`."""
    coverage: float = 0.0
    """Share of the backbone's elements that were loaded, in [0, 1]; the smaller of parameters' and statistics' shares."""
    missing: tuple[str, ...] = ()
    """Backbone tensors that the file lacks or has in another shape."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that the model has no place for."""
    head_kept: bool = False
    head: str = "new"
    """Why the head was kept or is new."""


def load_weights(model: nn.Module, weights: str, name: str, classes: Sequence[str] = ()) -> WeightsReport:
    """Loads `weights` ("auto", "none" or a path) in place; `name` is the model's timm name or alias.

    The head is loaded only if it has the model's number of classes and, where the file's sidecar (best.json beside
    best.safetensors) names classes, these are `classes` in the same order. Positions and windows are resized by timm.
    Raises WeightsError: weights not to be had, unreadable, damaged, or covering less than 99 % of the backbone.
    """
    if weights == "none":
        return WeightsReport(source="none", head="new: from scratch")
    name = resolve_name(name)
    if weights == "auto":
        source, path = fetch_pretrained(name)
        sidecar: dict[str, Any] = {}
    else:
        source, path = weights, Path(weights).expanduser()
        sidecar = read_sidecar(path)
    tensors = read_tensors(path)
    sha256 = file_sha256(path)
    if sidecar.get("sha256", sha256) != sha256:
        raise WeightsError(
            "weights file differs from its sidecar", got=f"{path} with sha256 {sha256}", want=sidecar["sha256"], cure="copy it again"
        )
    tensors = _fitted(tensors, model, name)
    keep, reason = (False, "new: the hub's classes are not these") if weights == "auto" else _keep_head(model, tensors, sidecar, classes)
    report = _load(model, tensors, keep)
    report = WeightsReport(source=source, sha256=sha256, head_kept=keep, head=reason, **report)
    if report.coverage < MIN_COVERAGE:
        raise _too_little(report, model, tensors, name, str(sidecar.get("model", "")))
    logger.info("weights: source=%s coverage=%.4f missing=%d unexpected=%d head=%s", source, report.coverage, len(report.missing), len(report.unexpected), reason)
    return report


def _fitted(tensors: dict[str, Tensor], model: nn.Module, name: str) -> dict[str, Tensor]:
    """Passes tensors through timm's own filter for this model: old names, patch and position sizes."""
    adapt = checkpoint_filter(name)
    if adapt is None:
        return tensors
    try:
        return dict(adapt(dict(tensors), model))
    except (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # Made for this architecture alone, it may stumble over another's weights; the coverage then tells.
        logger.warning("weights: timm's filter for %s failed, error=%r", name, error)
        return tensors


@cache
def checkpoint_filter(name: str) -> Callable[[dict[str, Tensor], nn.Module], Mapping[str, Tensor]] | None:
    """The function by which timm fits weights to a model, or None if it needs none.

    timm hands it from each model's builder to its loader and offers no other way to it; so the loader is replaced while
    a model without data is built.
    """
    caught: list[Any] = []

    def catch(model: nn.Module, *, filter_fn: Any = None, **_: Any) -> None:
        caught.append(filter_fn)

    with _patching:
        original = _builder.load_pretrained
        _builder.load_pretrained = catch  # type: ignore[assignment]
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                timm.create_model(name, pretrained=True)
        finally:
            _builder.load_pretrained = original
    return caught[0] if caught else None


def _keep_head(
    model: nn.Module, tensors: Mapping[str, Tensor], sidecar: Mapping[str, Any], classes: Sequence[str]
) -> tuple[bool, str]:
    own = model.state_dict()
    names = sorted(head_parameters(model), reverse=True)
    if not names or not all(name in tensors for name in names):
        return False, "new: the file has none"
    if any(tensors[name].shape != own[name].shape for name in names):
        return False, f"new: the file's is of shape {tuple(tensors[names[0]].shape)}, the model's {tuple(own[names[0]].shape)}"
    known = sidecar.get("classes")
    if known is None or not classes:
        return True, "kept: as many classes, their names are not known"
    if list(known) == list(classes):
        return True, "kept: same classes"
    return False, "new: other classes, or in another order"


def _load(model: nn.Module, tensors: Mapping[str, Tensor], keep_head: bool) -> dict[str, Any]:
    """Loads what fits and returns the report's fields about it."""
    own = model.state_dict()
    head = head_parameters(model)
    fitting = {name: value for name, value in tensors.items() if name in own and value.shape == own[name].shape}
    if not keep_head:
        fitting = {name: value for name, value in fitting.items() if name not in head}
    coverage = _coverage(model, fitting)
    if coverage >= MIN_COVERAGE:
        model.load_state_dict(fitting, strict=False)
    return {
        "coverage": coverage,
        "missing": tuple(name for name in own if name not in fitting and name not in head),
        "unexpected": tuple(name for name in tensors if name not in own),
    }


def _coverage(model: nn.Module, fitting: Mapping[str, Tensor]) -> float:
    """Share of the backbone's elements in `fitting`: of its parameters or of its statistics, whichever is smaller.

    Statistics are counted apart: without batch norm's a model is useless, and they are far below 1 % of the elements.
    """
    head, parameters = head_parameters(model), {name for name, _ in model.named_parameters(remove_duplicate=False)}
    shares = [1.0]
    backbone = {name: value for name, value in model.state_dict().items() if name not in head and value.is_floating_point()}
    for names in (backbone.keys() & parameters, backbone.keys() - parameters):
        if total := sum(backbone[name].numel() for name in names):
            shares.append(sum(backbone[name].numel() for name in names if name in fitting) / total)
    return min(shares)


def _too_little(report: WeightsReport, model: nn.Module, tensors: Mapping[str, Tensor], name: str, told: str) -> WeightsError:
    own = model.state_dict()
    examples = [
        f"{key} ({'absent' if key not in tensors else f'{tuple(tensors[key].shape)} for {tuple(own[key].shape)}'})"
        for key in report.missing[:3]
    ]
    likely = told if told and told != name else _fitting_model(tensors, name)
    return WeightsError(
        f"weights do not fit {name}",
        got=f"{report.coverage:.1%} of the backbone from {report.source}; missing {', '.join(examples)}",
        want=f"at least {MIN_COVERAGE:.0%}",
        cure=f"--model {likely}" if likely else "give --model the name of the model that was saved",
    )


def _fitting_model(tensors: Mapping[str, Tensor], name: str) -> str:
    """A timm model that these tensors fit by name and shape, found within SEARCH_SECONDS, or an empty text."""
    end = time.monotonic() + SEARCH_SECONDS
    for candidate in _candidates(name):
        if time.monotonic() > end:
            break
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            other = timm.create_model(candidate)
        own = other.state_dict()
        if _coverage(other, {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}) >= MIN_COVERAGE:
            return candidate
    return ""


def _candidates(name: str) -> Iterator[str]:
    """Architectures to try: those of like name, then small and common ones."""
    near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=12, cutoff=0.6)
    common = ["resnet18", "resnet50", "efficientnet_b0", "convnext_tiny", "vit_base_patch16_224", "regnety_004", "mobilenetv3_large_100"]
    large = [alias.partition(".")[0] for alias in ALIASES.values()]
    yield from dict.fromkeys([*near, *timm.list_models("test_*"), *common, *large])
