"""Members: what a run folder holds to predict with, wherever it lies now. A member is found without importing torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sports_ray.config import DataConfig, ImageSpec
from sports_ray.errors import ConfigError, RunError, SportsRayError, WeightsError
from sports_ray.store import weights
from sports_ray.store.run_dir import RunDir, checked_run_name
from sports_ray.store.storage import Storage, absolute, open_storage

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sports_ray.data.manifest import Manifest

KINDS = ("best", "last")
TAKEN_NAMES = ("ensemble", "id", "path", "label", "labels", "error")
"""Other columns of predictions: a member of such a name would take another's place in a table, or double a column."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Member:
    """Weights that predict, with all that a prediction depends on besides the photographs."""

    name: str
    """The run's name, with @best or @last where that was asked for."""
    store: str
    """Folder or URI of the store, or of the run itself where `run` is empty."""
    run: str
    kind: str
    """best or last."""
    sha256: str
    """Of the weights file, hex."""
    model: str
    """timm's name."""
    classes: tuple[str, ...]
    spec: ImageSpec
    precision: str
    """bf16, fp16 or fp32: in which the run was trained and validated."""
    channels_last: bool
    subset: bool
    """Whether it was trained on some of the classes of its photographs (data.classes)."""
    max_pixels: int
    """Images with more are refused as bombs."""
    head: str = "linear"
    """As model.head of the run."""
    thresholds: tuple[float, ...] = ()
    """Multi-label: probability from which on each class is predicted, fitted on validation images; empty: one class each."""

    @property
    def multilabel(self) -> bool:
        return bool(self.thresholds)

    def storage(self) -> Storage:
        """Of the run's folder."""
        storage = open_storage(self.store)
        return storage.child(self.run) if self.run else storage

    def preprocessing(self) -> dict[str, Any]:
        """What becomes of a photograph before the model, as JSON."""
        return {**asdict(self.spec), "max_pixels": self.max_pixels}


def find_members(runs: Sequence[str], store: str) -> list[Member]:
    """Members for names in `store`, paths or URIs of run folders; `NAME@last` takes the last weights, not the best.

    Raises RunError or WeightsError for one that is not there or not trained to its end, ConfigError if two are the same,
    one has a name of TAKEN_NAMES, or their classes differ."""
    if not runs:
        raise ConfigError("no run given", want="one or more finished runs", cure="--run NAME, a name or a path")
    members = [find_member(run, store) for run in runs]
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        doubled = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError("two members of the same name", got=", ".join(doubled), want="each run once")
    _check_names(names)
    check_classes(members)
    return members


def find_member(run: str, store: str) -> Member:
    """See `find_members`."""
    where, at, kind = run.rpartition("@")
    wanted: tuple[str, ...] = (kind,) if at and kind in KINDS else KINDS
    called = where if at and kind in KINDS else run
    for place, name in _places(called, store):
        storage = open_storage(place)
        storage = storage.child(name) if name else storage
        for each in wanted:
            if (sidecar := weights.describe(storage, each)) is not None:
                short = _folder_name(name or called)
                return _member(f"{short}@{each}" if called != run else short, place, name, each, storage, sidecar)
        if {"run.json", "run.copy.json", "checkpoints"} & {entry.name for entry in storage.list()}:
            raise WeightsError(
                f"run {storage.uri}",
                got="no whole weights to predict with",
                want=" or ".join(f"weights/{each}.safetensors with its .json" for each in wanted),
                cure=f"train it to its end: sports-ray resume {storage.uri}",
            )
    want = f"a run in {store}, or the path of one"
    raise RunError("run", got=run, want=want, cure="see `sports-ray status`")


def check_classes(members: Sequence[Member]) -> None:
    """ConfigError, saying which differ, unless all members have the same classes in the same order."""
    first = members[0]
    for other in members[1:]:
        if other.multilabel != first.multilabel:
            one, many = sorted((first, other), key=lambda member: member.multilabel)
            raise ConfigError(
                "members of two kinds",
                got=f"{one.name}: one class a photograph, {many.name}: several",
                want="all of one kind",
                cure="evaluate them apart",
            )
        if other.classes != first.classes:
            raise ConfigError(
                "members have different classes",
                got=_difference(first, other),
                want="the same classes in the same order",
                cure="evaluate them apart, or train both on the same classes",
            )


def manifest_of(member: Member) -> Manifest | None:
    """The photographs that the run was trained and validated on; None where its folder does not tell (any more)."""
    from sports_ray.data.manifest import Manifest

    with suppress(SportsRayError):
        return Manifest.from_bytes(RunDir(member.storage()).read_manifest())
    return None


def load_model(member: Member, device: torch.device) -> nn.Module:
    """The member's model in evaluation mode on `device`, in the memory order that it was trained in.

    Raises WeightsError where the weights are damaged or do not fit the model."""
    import torch

    from sports_ray.config import ModelConfig
    from sports_ray.model.build import create, pretrained_cfg

    tensors, sidecar = weights.read(member.storage(), member.kind)
    if sidecar["weights_sha256"] != member.sha256:
        raise WeightsError(f"weights of {member.name}", got="others than a moment ago", cure="the same command again")
    fixed = bool(pretrained_cfg(member.model).fixed_input_size)
    config = ModelConfig(name=member.model, head=member.head)
    model = create(config, len(member.classes), member.spec.eval_size if fixed else 0, sure=True)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"weights of {member.name}", got=reason, want=f"those of {member.model}") from error
    layout = torch.channels_last if member.channels_last else torch.contiguous_format
    return model.to(device, memory_format=layout).eval().requires_grad_(False)  # type: ignore[call-overload,no-any-return]


def _places(run: str, store: str) -> list[tuple[str, str]]:
    """(store, name) pairs where a run may lie, the name empty where the first is the run's own folder."""
    if "://" in run or "/" in run or os.sep in run or run in (".", ".."):
        return [(absolute(run), "")]
    return [(absolute(store), checked_run_name(run)), (absolute(run), "")]


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name in TAKEN_NAMES:
            raise ConfigError(
                "name of a run",
                got=name,
                want=f"another name than {', '.join(TAKEN_NAMES[:-1])} or {TAKEN_NAMES[-1]}, which predictions use themselves",
                cure=f"--run {name}@best, or give its folder another name",
            )


def _folder_name(path: str) -> str:
    bare = path.partition("?")[0].rstrip("/")
    return os.path.basename(bare if "://" in bare else os.path.abspath(bare)) or "run"


def _member(name: str, store: str, run: str, kind: str, storage: Storage, sidecar: dict[str, Any]) -> Member:
    run_dir = RunDir(storage)
    record: dict[str, Any] = {}
    settled: dict[str, Any] = {}
    # A member downloaded without its run is whole: what the run's records add has good defaults.
    with suppress(SportsRayError):
        record = (run_dir.read_record() or {}).get("config", {})
    with suppress(SportsRayError):
        settled = run_dir.read_settled() or {}
    try:
        given = sidecar["preprocessing"]
        spec = ImageSpec(**{**given, "mean": tuple(given["mean"]), "std": tuple(given["std"])})
        return Member(
            name=name,
            store=store,
            run=run,
            kind=kind,
            sha256=sidecar["weights_sha256"],
            model=sidecar["model"],
            classes=tuple(sidecar["classes"]),
            spec=spec,
            precision=settled.get("precision", "fp32"),
            channels_last=bool(record.get("model", {}).get("channels_last", True)),
            subset=bool(record.get("data", {}).get("classes")),
            max_pixels=int(record.get("data", {}).get("max_pixels", DataConfig().max_pixels)),
            head=str(sidecar.get("head", "linear")),
            thresholds=tuple(float(one) for one in sidecar.get("thresholds", ())),
        )
    except (KeyError, TypeError) as error:
        what = f"{storage.uri}/weights/{kind}.json"
        raise WeightsError(
            what, got=f"no {error}", want="model, classes and preprocessing, as training writes"
        ) from None


def _difference(first: Member, other: Member) -> str:
    """Which classes only one of them has, or else where their order parts."""
    parts = []
    for mine, theirs in ((first, other), (other, first)):
        if only := [name for name in mine.classes if name not in theirs.classes]:
            more = f" and {len(only) - SHOWN} more" if len(only) > SHOWN else ""
            parts.append(f"only in {mine.name}: {', '.join(only[:SHOWN])}{more}")
    if parts:
        return "; ".join(parts)
    at = next(
        place for place, names in enumerate(zip(first.classes, other.classes, strict=False)) if len(set(names)) > 1
    )
    return f"another order: class {at} is {first.classes[at]!r} in {first.name}, {other.classes[at]!r} in {other.name}"
