"""Overlays of photographs as files, one after another, damaged ones told and passed over."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sports_ray.data.files import Files, is_pack, open_files
from sports_ray.errors import ConfigError, DataError
from sports_ray.report.explain import Seer
from sports_ray.report.gallery import BATCH, overlay
from sports_ray.store.storage import Storage, open_storage


class Listed(NamedTuple):
    files: Files
    path: str
    """Below the files' root."""
    shown: str
    """What it is called to the reader: as it was named, or the folder's name and its place in it."""
    name: str
    """Of its overlay below --out, without its ending."""


@dataclass(frozen=True, slots=True)
class Explained:
    path: str
    overlay: str = ""
    """The PNG that was written."""
    predicted: str = ""
    shown: str = ""
    """The class whose evidence is shown."""
    probability: float = 0.0
    """Of the class that is shown, in [0, 1]."""
    layer: str = ""
    """Where in the model the map was taken."""
    error: str = ""
    """Why there is no overlay; empty if there is one."""

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def list_images(places: Sequence[str]) -> list[Listed]:
    """Files as they are, and all images of folders and packs, sorted. DataError for what is not there, or holds no image.

    Files of one name in different folders do not overwrite each other: a number sets them apart."""
    taken: set[str] = set()
    listed = []
    for files, path, shown in chain.from_iterable(map(_images_of, places)):
        name = os.path.splitext(path)[0]
        free = next(one for one in chain([name], (f"{name}-{number}" for number in count(2))) if one not in taken)
        taken.add(free)
        listed.append(Listed(files, path, shown, free))
    if not listed:
        raise DataError("--images", got="no photograph", want="files, or folders that hold some")
    return listed


def _images_of(place: str) -> Iterator[tuple[Files, str, str]]:
    path = Path(place).expanduser()
    if is_pack(place) or path.is_dir():
        files = open_files(place if is_pack(place) else str(path))
        yield from ((files, inside, f"{place.rstrip('/')}/{inside}") for inside in files.paths())
    elif path.is_file():
        yield open_files(str(path.parent)), path.name, place
    else:
        raise DataError("--images", got=place, want="a photograph, or a folder or pack of them")


def explain_files(seer: Seer, files: Sequence[Listed], out: Path, target: str | None = None) -> Iterator[Explained]:
    """Writes an overlay of each file below `out` and says what it shows; `target`: the class, by default the answer.

    Raises ConfigError for a class that the model does not know, StorageError if `out` cannot be written."""
    if target is not None and target not in seer.classes:
        import difflib

        near = difflib.get_close_matches(target, seer.classes, 1)
        cure = f"did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            "--class", got=repr(target), want=f"one of {seer.name}'s {len(seer.classes)} classes", cure=cure
        )
    storage = open_storage(str(out))
    for start in range(0, len(files), BATCH):
        yield from _batch(seer, files[start : start + BATCH], storage, target)


def _batch(seer: Seer, files: Sequence[Listed], storage: Storage, target: str | None) -> Iterator[Explained]:
    views: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    for place, file in enumerate(files):
        try:
            views[place] = seer.view(file.files.read(file.path))
        except (OSError, DataError) as error:
            errors[place] = str(error)
    if views:
        chosen = None if target is None else torch.full((len(views),), seer.classes.index(target))
        cam = seer.look(torch.stack(list(views.values())), chosen)
    rows = {place: row for row, place in enumerate(views)}
    for place, file in enumerate(files):
        if place in errors:
            yield Explained(file.shown, error=errors[place])
            continue
        row = rows[place]
        sink, name = io.BytesIO(), f"{file.name}.png"
        Image.fromarray(overlay(views[place], cam.heat[row])).save(sink, "PNG")
        storage.write(name, sink.getvalue())
        label = int(cam.targets[row])
        yield Explained(
            path=file.shown,
            overlay=f"{storage.uri}/{name}",
            predicted=seer.classes[int(cam.probabilities[row].argmax())],
            shown=seer.classes[label],
            probability=float(cam.probabilities[row, label]),
            layer=cam.layer,
        )
