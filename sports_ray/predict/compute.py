"""Files -> pixels -> logits. The same bits in this process and in any worker: fixed batches, one thread a batch.

One thread of one operation, and as many batches at once as there are cores: sums are then added in the same order on
any number of cores, and small models are faster so than with several threads on one batch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sports_ray.config import ImageSpec
from sports_ray.data.augment import evaluate
from sports_ray.data.decode import open_image
from sports_ray.data.files import Files as Photographs
from sports_ray.data.files import open_files
from sports_ray.errors import DataError
from sports_ray.predict.blocks import UNREAD, Shelf
from sports_ray.predict.images import Images
from sports_ray.predict.member import Member, load_model
from sports_ray.predict.views import Source, View, cut, source_spec

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BATCHES = {"cpu": 32, "cuda": 128}
"""Images of one forward pass, by device."""

_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")

Pixels = dict[Source, NDArray[np.uint8]]
"""[n, 3, C, C] of each source; zeros where there is an error."""


class Files(NamedTuple):
    """Photographs to be read: path, sha256 when it was listed, and what was wrong with it then, of each."""

    paths: list[str]
    sha256: list[str]
    errors: list[str | None]
    root: str = ""
    """Where the paths start, as `open_files` knows it; empty: they are absolute."""


@dataclass(frozen=True)
class Job:
    """What of one member is to be computed: views of blocks that are not there yet."""

    member: Member
    images: Images
    views: tuple[View, ...]
    shelf: Shelf
    missing: dict[int, list[str]]
    """Names of the views that each block lacks."""
    device: str
    """cpu or cuda."""
    batch: int

    def files(self, start: int, stop: int) -> Files:
        part = self.images.table.slice(start, stop - start)
        paths, digests, errors = (part.column(name).to_pylist() for name in ("path", "sha256", "error"))
        return Files(paths, digests, errors, self.images.root)

    def views_of(self, block: int) -> list[View]:
        return [view for view in self.views if view.name in self.missing[block]]

    def rows_to_do(self) -> int:
        return sum(stop - start for start, stop in map(self.shelf.span, self.missing))


def batches(rows: int, batch: int) -> list[tuple[int, int]]:
    """Spans [start, stop) into which a block is cut for the model: all of `batch` rows but the last."""
    return [(start, min(rows, start + batch)) for start in range(0, rows, batch)]


def decode_files(
    files: Files, sources: Sequence[Source], spec: ImageSpec, max_pixels: int
) -> tuple[Pixels, list[str | None]]:
    """Reads and decodes each file once, for all sources; what is wrong with one is its error, and its pixels are zeros.

    The plain view's source is what the loader gives training to validate on, byte for byte."""
    count = len(files.paths)
    pixels = {source: np.zeros((count, 3, source.size, source.size), np.uint8) for source in sources}
    specs = {source: source_spec(source, spec) for source in sources}
    errors: list[str | None] = list(files.errors)
    photographs = open_files(files.root)
    for place, (path, digest) in enumerate(zip(files.paths, files.sha256, strict=True)):
        if errors[place] is not None:
            continue
        try:
            image = open_image(_read(photographs, path, digest), max_pixels=max_pixels).pixels()
            for source in sources:
                np.copyto(pixels[source][place], evaluate(image, specs[source], source.size).numpy())
        except DataError as error:
            errors[place] = _words(error)
            for source in sources:
                pixels[source][place] = 0
    return pixels, errors


def _words(error: DataError) -> str:
    """Of a bad image; without the address in memory that Pillow names, for equal files shall have equal rows."""
    text = f"{error.what}: {error.got}" if str(error.got) else error.what
    return _ADDRESS.sub("", text)


def _read(photographs: Photographs, path: str, digest: str) -> bytes:
    try:
        data = photographs.read(path)
    except OSError as error:
        raise DataError(f"{UNREAD}{error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"{UNREAD}it has changed since it was listed")
    return data


class Predictor:
    """One member's model on one device. Several threads may call it at once."""

    def __init__(self, member: Member, device: str, batch: int) -> None:
        settle(device)
        self._device = torch.device(device)
        self._batch = batch
        self._precision = member.precision
        self._layout = torch.channels_last if member.channels_last else torch.contiguous_format
        self._model = load_model(member, self._device)
        self._classes = len(member.classes)
        self._mean = _channels(member.spec.mean, self._device)
        self._inverse_std = 1.0 / _channels(member.spec.std, self._device)

    @torch.inference_mode()
    def logits(self, pixels: Pixels, views: Sequence[View]) -> dict[str, NDArray[np.float32]]:
        """Logits of one batch: sources uint8 [n, 3, C, C] -> float32 [n, K] a view. All views see the same decoded images."""
        images = {source: torch.from_numpy(part).to(self._device, non_blocking=True) for source, part in pixels.items()}
        found = {}
        for view in views:
            with torch.autocast(self._device.type, DTYPES[self._precision], enabled=self._precision != "fp32"):
                output = self._model(self._normalise(cut(view, images[view.source])))
            found[view.name] = output.float()
        return {name: output.cpu().numpy() for name, output in found.items()}

    def block(self, pixels: Pixels, views: Sequence[View]) -> dict[str, NDArray[np.float32]]:
        """As `logits`, of a whole block, in its fixed batches."""
        rows = len(next(iter(pixels.values())))
        parts = [
            self.logits({source: part[start:stop] for source, part in pixels.items()}, views)
            for start, stop in batches(rows, self._batch)
        ]
        return {view.name: np.concatenate([part[view.name] for part in parts]) for view in views}

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, S, S] -> float32, (x / 255 - mean) / std, by the same operations as in training."""
        return images.to(torch.float32).sub_(self._mean).mul_(self._inverse_std).contiguous(memory_format=self._layout)


def settle(device: str) -> None:
    """Settles for this thread, and for those that it starts, what the last bits depend on."""
    torch.set_num_threads(1)
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def found_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_block(shelf: Shelf, block: int, logits: dict[str, NDArray[np.float32]], errors: Sequence[str | None]) -> None:
    """Puts the views of a block in place, logits of rows with an error as zeros."""
    bad = np.array([error is not None for error in errors])
    for name, values in logits.items():
        if bad.any():
            values = np.where(bad[:, None], np.float32(0), values)
        shelf.write(name, block, values, errors)


def key_of(member: Member, images: Images, device: str, batch: int) -> dict[str, Any]:
    """All that a member's logits of these photographs depend on, but the view."""
    return {
        "weights": member.sha256,
        "model": member.model,
        "images": images.content(),
        "rows": len(images),
        "preprocessing": member.preprocessing(),
        "precision": member.precision,
        "channels_last": member.channels_last,
        "device": device,
        "batch": batch,
    }


def _channels(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).mul_(255.0).view(1, 3, 1, 1)
