"""What an evaluation or a prediction is to do: members, photographs, views and places, settled before torch is imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sports_ray.data.files import is_pack
from sports_ray.errors import ConfigError, DataError, SportsRayError
from sports_ray.predict.digests import Progress
from sports_ray.predict.images import (
    SPLITS,
    Images,
    list_images,
    list_split,
    manifest_split,
    seem_trained_on,
    trained_on,
)
from sports_ray.predict.member import Member, find_members, manifest_of
from sports_ray.predict.views import View, views_of
from sports_ray.predict.write import read_scores
from sports_ray.store.codec import canonical
from sports_ray.store.run_dir import RunDir
from sports_ray.store.storage import Storage, absolute, below, open_storage, parted

if TYPE_CHECKING:
    from sports_ray.data.manifest import Manifest

FOLDER = "evaluations"
FORMAT = 1
SCORING = 2
"""Of how scores are computed from predictions: an evaluation of another is made anew, from the blocks that are there."""


@dataclass(frozen=True)
class Plan:
    """What is to be predicted by whom. `out` and `digest` are empty where nothing is to be scored."""

    members: tuple[Member, ...]
    images: Images
    names: tuple[str, ...]
    """What to call each image in a submission; empty for an evaluation."""
    data: str
    split: str
    tta: str
    average: str
    """probs or logits."""
    weights: str
    """uniform or fit."""
    groups: str
    """A CSV of groups of classes, or empty."""
    home: str
    """Folder or URI that holds predictions/ and evaluations/."""
    out: str = ""
    digest: str = ""
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.members[0].classes

    @property
    def multilabel(self) -> bool:
        return self.members[0].multilabel

    def views(self, member: Member) -> tuple[View, ...]:
        return views_of(self.tta, member.spec)

    def storage(self) -> Storage:
        return open_storage(self.out)

    def finished(self) -> dict[str, Any] | None:
        """The scores, if this very evaluation is finished already."""
        return read_scores(self.storage(), self.digest)


def plan_evaluation(
    runs: Sequence[str],
    *,
    data: str = "",
    split: str = "test",
    store: str = "",
    tta: str = "none",
    average: str = "probs",
    weights: str = "uniform",
    groups: str = "",
    out: str = "",
    progress: Progress | None = None,
) -> Plan:
    """Finds members and photographs. `data`: by default what the first member was trained on; `store`: where names of runs
    are looked up, by default runs; `out`: by default <home>/evaluations/<digest>. Raises UserError for what has to be mended."""
    members = find_members(runs, store or "runs")
    for member in members:
        views_of(tta, member.spec)
    manifests = [manifest_of(member) for member in members]
    if not data and manifests[0] is None:
        raise ConfigError("no photographs given", want="a folder or a CSV list", cure="--data DIR")
    source = data or (_where_trained(members[0], manifests[0]) if manifests[0] else "")
    several = members[0].multilabel
    if several and (weights != "uniform" or groups):
        what = "--weights" if weights != "uniform" else "--groups"
        raise ConfigError(what, got="several classes a photograph", want="one class each", cure="leave it out")
    images = _photographs(members, manifests[0], data, split, source, progress)
    notes = (*images.notes, *([] if split == "train" else _seen_in_training(images, members, manifests)))
    home = _home(members[0], store)
    described = {
        "format": FORMAT,
        "scoring": SCORING,
        "members": [[member.name, member.sha256, member.precision, member.preprocessing()] for member in members],
        "images": images.fingerprint(),
        "split": split,
        "tta": tta,
        "average": average,
        "weights": weights,
        "groups": _content(groups),
    }
    described |= {"thresholds": [list(member.thresholds) for member in members]} if several else {}
    digest = hashlib.sha256(canonical(described).encode()).hexdigest()
    return Plan(
        members=tuple(members),
        images=images,
        names=(),
        data=source,
        split=split,
        tta=tta,
        average=average,
        weights=weights,
        groups=groups,
        home=home,
        out=absolute(out) if out else below(home, f"{FOLDER}/{digest[:16]}"),
        digest=digest,
        notes=notes,
    )


def _photographs(
    members: Sequence[Member], trained: Manifest | None, data: str, split: str, source: str, progress: Progress | None
) -> Images:
    """The labelled photographs of a split. `trained`: what the first member was trained on."""
    several = members[0].multilabel
    # The folder of a list does not tell the splits, and of a multi-label one not the labels.
    if trained is not None and not data and (several or _lost_list(members[0], trained, source)):
        images = manifest_split(trained, _known_split(split), source, progress)
        lost = "the list that the first run was trained on is not there any more: its own rows are taken"
        images = images if several else replace(images, notes=(*images.notes, lost))
    else:
        subset = any(member.subset for member in members)
        images = list_split(source, split, members[0].classes, trained, progress, subset, several)
    if not any(label >= 0 for label in images.column("label")):
        what = f"labelled photographs of {split} in {source}"
        raise DataError(what, got="none", want="class folders", cure="`sports-ray predict` needs no labels")
    return images


def _where_trained(member: Member, trained: Manifest) -> str:
    """The CSV list that a run was trained on, while it lies there; else the root of its photographs."""
    recorded = _recorded_root(member)
    # Recorded as it was typed, it may be relative to another folder than this one; a list's own folder is the root.
    for place in (Path(trained.root, Path(recorded).name), Path(recorded).expanduser()) if recorded else ():
        if not member.multilabel and place.is_file() and str(place.resolve().parent) == trained.root:
            return str(place)
    return trained.root


def _lost_list(member: Member, trained: Manifest, source: str) -> bool:
    """Whether `source` is but the folder of the list that the run was trained on; False if that folder is gone too."""
    recorded = _recorded_root(member)
    if source != trained.root or not recorded or is_pack(recorded) or is_pack(source) or not os.path.isdir(source):
        return False
    name = Path(recorded).name
    return name not in ("", "..", os.path.basename(source)) and not os.path.isdir(absolute(recorded))


def _recorded_root(member: Member) -> str:
    """data.root of the run; empty where its folder does not tell (any more)."""
    with suppress(SportsRayError):
        config = (RunDir(member.storage()).read_record() or {}).get("config", {})
        return str(config.get("data", {}).get("root", ""))
    return ""


def _seen_in_training(images: Images, members: Sequence[Member], manifests: Sequence[Manifest | None]) -> Iterator[str]:
    for member, manifest in zip(members, manifests, strict=True):
        if manifest is None:
            continue
        if count := trained_on(images, manifest):
            yield f"{count:,} of {len(images):,} photographs were trained on by {member.name}: scores flatter it"
        elif count := seem_trained_on(images, manifest):
            told = f"{count:,} of {len(images):,} photographs have the paths of all that {member.name} was trained on"
            yield f"{told}: if they were only encoded anew, scores flatter it"


def plan_prediction(
    runs: Sequence[str],
    images: str,
    *,
    store: str = "",
    tta: str = "none",
    average: str = "probs",
    progress: Progress | None = None,
) -> Plan:
    """As `plan_evaluation`, for images without labels: a folder, or a CSV list of paths."""
    members = find_members(runs, store or "runs")
    for member in members:
        views_of(tta, member.spec)
    found, names = list_images(images, progress)
    return Plan(
        members=tuple(members),
        images=found,
        names=tuple(names),
        data=images,
        split="",
        tta=tta,
        average=average,
        weights="uniform",
        groups="",
        home=_home(members[0], store),
        notes=found.notes,
    )


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise ConfigError("--split", got=split, want=", ".join(SPLITS), cure="or name the list with --data LIST.csv")
    return split


def _home(member: Member, store: str) -> str:
    """Where predictions are kept: the store that was named, else the first member's, else (read-only) ./runs."""
    if store:
        return absolute(store)
    own = member.store if member.run else parted(member.store)[0]
    if "://" in own or os.access(own, os.W_OK | os.X_OK):
        return own
    return os.path.abspath("runs")


def _content(path: str) -> str:
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError("--groups", got=f"{path}: {error.strerror}", want="a CSV file") from None
