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

from torch import Tensor, nn

from sports_ray.errors import WeightsError
from sports_ray.model.build import ALIASES, head_parameters, head_tensors, resolve_name
from sports_ray.model.eager_timm import timm
from sports_ray.model.shapes import shapes_only
from sports_ray.model.source import fetch_pretrained, file_sha256, read_sidecar, read_tensors

logger = logging.getLogger(__name__)

MIN_COVERAGE = 0.99
"""Share of the backbone that weights must bring; below it they are those of another model."""
SEARCH_SECONDS = 4.0
"""Time spent on finding the model that refused weights would fit."""

COMMON = ("resnet18", "resnet50", "efficientnet_b0", "convnext_tiny", "vit_base_patch16_224", "regnety_004")

_patching = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReport:
    """What was loaded from where."""

    source: str
    """A hub id, a URL, a path, or `none`."""
    sha256: str = ""
    """Hex sha256 of the file; empty for `none`."""
    coverage: float = 0.0
    """Share of the backbone's elements that were loaded, in [0, 1]: of parameters or statistics, the smaller one."""
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
    A model on the meta device is only compared: so a run finds out before it starts, with the hub's file then cached.
    Raises WeightsError: weights not to be had, unreadable, damaged, or covering less than 99 % of the backbone.
    """
    if weights == "none":
        return WeightsReport(source="none", head="new: from scratch")
    name = resolve_name(name)
    sidecar: dict[str, Any] = {}
    if weights == "auto":
        source, path = fetch_pretrained(name)
    else:
        source, path = weights, Path(weights).expanduser()
        sidecar = read_sidecar(path)
    tensors = _fitted(read_tensors(path), model, name)
    sha256 = _verified(path, sidecar)
    keep, reason = False, "new: the hub's classes are not these"
    if weights != "auto":
        keep, reason = _keep_head(model, tensors, sidecar, classes)
    coverage, missing, unexpected = _load(model, tensors, keep)
    if coverage < MIN_COVERAGE:
        cure = _cure(missing, model, tensors, name, str(sidecar.get("model", "")))
        got = f"{coverage:.1%} of the backbone from {source}; missing {_examples(missing, model, tensors)}"
        raise WeightsError(f"weights do not fit {name}", got=got, want=f"at least {MIN_COVERAGE:.0%}", cure=cure)
    logger.info("weights: source=%s coverage=%.4f missing=%s unexpected=%s", source, coverage, missing, unexpected)
    return WeightsReport(
        source=source,
        sha256=sha256,
        coverage=coverage,
        missing=missing,
        unexpected=unexpected,
        head_kept=keep,
        head=reason,
    )


def _verified(path: Path, sidecar: Mapping[str, Any]) -> str:
    """The file's sha256, which must be the sidecar's where that names one."""
    sha256 = file_sha256(path)
    if (want := sidecar.get("weights_sha256", sha256)) != sha256:
        what = f"weights {path} differ from their sidecar"
        raise WeightsError(what, got=f"sha256 {sha256}", want=str(want), cure="copy both files again")
    return sha256


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
        original = timm.models._builder.load_pretrained
        timm.models._builder.load_pretrained = catch  # type: ignore[assignment]
        try:
            with shapes_only():
                timm.create_model(name, pretrained=True)
        finally:
            timm.models._builder.load_pretrained = original
    return caught[0] if caught else None


def _keep_head(
    model: nn.Module, tensors: Mapping[str, Tensor], sidecar: Mapping[str, Any], classes: Sequence[str]
) -> tuple[bool, str]:
    own = model.state_dict()
    head = head_tensors(model)
    names = [name for name in own if name in head]
    if not names or not all(name in tensors for name in names):
        return False, "new: the file has none" + (" of these layers" if len(names) > 2 else "")
    last = [name for name in names if name in head_parameters(model)][-1]
    if len(tensors[last]) != len(own[last]):
        return False, f"new: the file's has {len(tensors[last])} classes, the model's {len(own[last])}"
    if any(tensors[name].shape != own[name].shape for name in names):
        return False, "new: the file's has layers of other widths"
    known = sidecar.get("classes")
    if known is None or not classes:
        return True, "kept: as many classes, their names are not known"
    if list(known) == list(classes):
        return True, "kept: same classes"
    return False, "new: other classes, or in another order"


def _load(
    model: nn.Module, tensors: Mapping[str, Tensor], keep_head: bool
) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
    """Loads what fits, if that is enough; returns (coverage, missing, unexpected) as in the report."""
    own = model.state_dict()
    head = head_tensors(model)
    passed = set() if keep_head else head
    fitting = {key: value for key, value in tensors.items() if key not in passed and _fits(value, own.get(key))}
    coverage = _coverage(model, fitting)
    if coverage >= MIN_COVERAGE and not any(value.is_meta for value in own.values()):
        model.load_state_dict(fitting, strict=False)
    missing = tuple(key for key in own if key not in fitting and key not in head)
    return coverage, missing, tuple(key for key in tensors if key not in own)


def _fits(value: Tensor, place: Tensor | None) -> bool:
    return place is not None and value.shape == place.shape


def _coverage(model: nn.Module, fitting: Mapping[str, Tensor]) -> float:
    """Share of the backbone's elements in `fitting`: of its parameters or of its statistics, whichever is smaller.

    Statistics are counted apart: without batch norm's a model is useless, and they are far below 1 % of the elements.
    """
    head = head_tensors(model)
    parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    sizes = {key: value.numel() for key, value in model.state_dict().items() if value.is_floating_point()}
    shares = [1.0]
    for keys in (sizes.keys() & parameters - head, sizes.keys() - parameters - head):
        if total := sum(sizes[key] for key in keys):
            shares.append(sum(sizes[key] for key in keys if key in fitting) / total)
    return min(shares)


def _examples(missing: Sequence[str], model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """The first missing names, with both shapes where the file has that name."""
    own = model.state_dict()
    shapes = {key: f"{tuple(tensors[key].shape)} for {tuple(own[key].shape)}" for key in missing if key in tensors}
    return ", ".join(f"{key} ({shapes.get(key, 'absent')})" for key in missing[:3])


def _cure(missing: Sequence[str], model: nn.Module, tensors: Mapping[str, Tensor], name: str, told: str) -> str:
    """What to do about refused weights; `told` is the model that their sidecar names."""
    if len(missing) < len(model.state_dict()) / 2:
        return "a complete file: most of its names are this model's"
    likely = told if told not in ("", name) else _fitting_model(tensors, name)
    return f"--model {likely}" if likely else "give --model the name of the model that was saved"


def _fitting_model(tensors: Mapping[str, Tensor], name: str) -> str:
    """A timm model that these tensors fit by name and shape, found within SEARCH_SECONDS, or an empty text."""
    end = time.monotonic() + SEARCH_SECONDS
    for candidate in _candidates(name):
        if time.monotonic() > end:
            break
        with shapes_only():
            other = timm.create_model(candidate)
        own = other.state_dict()
        if (
            _coverage(other, {key: value for key, value in tensors.items() if _fits(value, own.get(key))})
            >= MIN_COVERAGE
        ):
            return candidate
    return ""


def _candidates(name: str) -> Iterator[str]:
    """Architectures to try: those of like name, then small and common ones."""
    near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=12, cutoff=0.6)
    large = [alias.partition(".")[0] for alias in ALIASES.values()]
    yield from dict.fromkeys([*near, *timm.list_models("test_*"), *COMMON, *large])
