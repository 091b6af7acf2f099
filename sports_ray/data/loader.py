"""Requests -> batches of uint8 images, in the same order and with the same bits however many processes work on them.

A batch is a function of (manifest, configuration, seed, request) alone. So it does not matter which process makes it,
what the cache holds, how many workers share a step, or where a run was resumed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sports_ray.config import AugmentConfig, DataConfig, ImageSpec
from sports_ray.data import augment as augmentation
from sports_ray.data.cache import PixelCache, budget_bytes
from sports_ray.data.decode import open_image
from sports_ray.data.files import open_files
from sports_ray.data.label_sets import matrix
from sports_ray.data.order import Orders, Request
from sports_ray.data.pool import Pool
from sports_ray.data.sampler import Sampler
from sports_ray.errors import DataError

if TYPE_CHECKING:
    from sports_ray.data.manifest import Manifest

_AHEAD = 2
_SHRINKS = (1, 2, 4, 8)
_SLOTS_AT_ONCE = 1 << 16


class Batch(NamedTuple):
    request: Request
    images: Tensor
    """uint8 [n, 3, S, S] RGB; in pinned memory where there is CUDA."""
    labels: Tensor
    """int64 [n]; of multi-label photographs uint8 [n, K], 1 where one shows the class."""
    rows: Tensor
    """int64 [n], rows of the split's table."""


class Task(NamedTuple):
    """What a process of the loader is asked for."""

    request: Request
    rows: NDArray[np.int64]
    """[n], of the split's table."""


class ImageStream(Iterator[Batch]):
    """Batches in the order of their requests; a context manager. Made by `stream`."""

    def __init__(self, reader: Reader, requests: Iterable[Request], processes: int) -> None:
        self._pinned = torch.cuda.is_available()
        self._reader = reader
        self._pool = Pool[Task, None](reader.fill_rows, reader.size, processes) if processes else None
        self._source = self._pooled(self._pool, requests) if self._pool else self._own(requests)
        # One thread works ahead: it decodes (processes = 0) or fetches, while the training thread computes.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._coming: deque[Future[Batch | None]] = deque()

    def __iter__(self) -> ImageStream:
        return self

    def __next__(self) -> Batch:
        while len(self._coming) <= _AHEAD:
            self._coming.append(self._thread.submit(next, self._source, None))
        batch = self._coming.popleft().result()
        if batch is None:
            self.close()
            raise StopIteration
        return batch

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the loader's processes and thread; may be called twice."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._pool:
            self._pool.close()

    def _own(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for request in requests:
            images = self._empty(request)
            rows = self._reader.fill(request, images.numpy().reshape(-1))
            yield self._batch(request, images, rows)

    def _pooled(self, pool: Pool[Task, None], requests: Iterable[Request]) -> Iterator[Batch]:
        # An epoch's order is computed here, once, and not in each process: of 100 M images it takes 0.4 GB.
        tasks = (Task(request, self._reader.rows(request)) for request in requests)
        for (request, rows), pixels, _ in pool.results(tasks):
            images = self._empty(request)
            np.copyto(images.numpy().reshape(-1), pixels)
            yield self._batch(request, images, rows)

    def _empty(self, request: Request) -> Tensor:
        return torch.empty(self._reader.shape(request), dtype=torch.uint8, pin_memory=self._pinned)

    def _batch(self, request: Request, images: Tensor, rows: NDArray[np.int64]) -> Batch:
        return Batch(request, images, torch.from_numpy(self._reader.labels(request, rows)), torch.from_numpy(rows))


class Reader:
    """Fills a buffer with the images of a request: reading, decoding, the cache, augmentation."""

    def __init__(
        self, manifest: Manifest, data: DataConfig, augment: AugmentConfig, spec: ImageSpec, seed: int
    ) -> None:
        augmentation.check(augment)
        self._augment, self._spec, self._seed = augment, spec, seed
        self._max_pixels = data.max_pixels
        # Before the fork: all processes of this worker map the same files, and one fetches what has to be fetched.
        self._files = open_files(manifest.root, data)
        self._files.fetch()
        tables = {split: manifest.rows(split) for split in ("train", "val")}
        self._paths = {split: table.column("path") for split, table in tables.items()}
        self._labels = {split: table.column("label").to_numpy() for split, table in tables.items()}
        self._sets = matrix(manifest.label_sets, len(manifest.classes)) if manifest.multilabel else None
        self._sizes = {
            split: np.stack([table.column(side).to_numpy() for side in ("width", "height")], axis=1)
            for split, table in tables.items()
        }
        self._cache = self._new_cache(budget_bytes(data.cache_gb))
        sampler = Sampler(data, seed, self._labels["train"])
        self._orders = Orders(sampler.rows, len(sampler))

    def shape(self, request: Request) -> tuple[int, int, int, int]:
        side = self._spec.train_size if request.split == "train" else self._spec.eval_size
        return request.stop - request.start, 3, side, side

    def size(self, task: Task) -> int:
        """Bytes of a task's images."""
        return int(np.prod(self.shape(task.request)))

    def labels(self, request: Request, rows: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.uint8]:
        labels = self._labels[request.split][rows].astype(np.int64)
        return labels if self._sets is None else self._sets[labels]

    def path(self, split: str, row: int) -> str:
        """Below the manifest's root."""
        return str(self._paths[split][row].as_py())

    def rows(self, request: Request) -> NDArray[np.int64]:
        """Rows of the split's table that a request asks for, int64 [n]."""
        if request.split == "val":
            return np.arange(request.start, request.stop)
        return self._orders.of(request.epoch)[request.start : request.stop].astype(np.int64)

    def fill(self, request: Request, buffer: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Write the images [n, 3, S, S] into a flat buffer and return their rows. DataError names a file at fault."""
        rows = self.rows(request)
        self.fill_rows(Task(request, rows), buffer)
        return rows

    def fill_rows(self, task: Task, buffer: NDArray[np.uint8]) -> None:
        """As `fill`, where the rows are known."""
        request, rows = task
        images = buffer.reshape(self.shape(request))
        if request.split == "val":
            for image, row in zip(images, rows.tolist(), strict=True):
                np.copyto(image, self._evaluated(row))
            return
        draws = augmentation.draws(self._seed, request.epoch, request.start, request.stop)
        for image, row, u in zip(images, rows.tolist(), draws, strict=True):
            np.copyto(image, self._augmented(row, u))

    def _evaluated(self, row: int) -> NDArray[np.uint8]:
        image = self._cache.get(row)
        if image is None:
            pixels = self._decoded("val", row)
            image = augmentation.evaluate(pixels, self._spec, self._spec.eval_size).numpy()
            self._cache.put(row, np.ascontiguousarray(image))
        return image

    def _augmented(self, row: int, u: list[float]) -> NDArray[np.uint8]:
        size = self._spec.train_size
        width, height = self._sizes["train"][row].tolist()
        params = augmentation.params_from(self._augment, u, width, height, size)
        shrink = augmentation.shrink(params.box, size)
        index = len(self._paths["val"]) + row * len(_SHRINKS) + _SHRINKS.index(shrink)
        kept = self._cache.get(index)
        if kept is None:
            kept = self._decoded("train", row, shrink).permute(1, 2, 0).contiguous().numpy()
            self._cache.put(index, kept)
        return augmentation.apply(torch.from_numpy(kept).permute(2, 0, 1), params, self._spec, shrink).numpy()

    def _decoded(self, split: str, row: int, shrink: int = 1) -> Tensor:
        path = self.path(split, row)
        try:
            image = open_image(self._files.read(path), max_pixels=self._max_pixels)
            found, listed = [image.width, image.height], self._sizes[split][row].tolist()
            if found != listed:
                raise DataError("the photograph has changed", f"{found} px", f"{listed} px", "scan the folder again")
            return image.pixels(shrink)
        except OSError as error:
            where, cure = os.path.join(self._files.root, path), "put it back, then resume"
            raise DataError(where, got=error.strerror, want="a readable file", cure=cure) from None
        except DataError as error:
            where = os.path.join(self._files.root, path)
            raise DataError(f"{where}: {error.what}", error.got, error.want, error.cure) from None

    def _new_cache(self, budget: int) -> PixelCache:
        """Slots for validation images, ready for the model; then for each training image as decoded, at each scale that
        its crops may ask for."""
        sizes = [np.full(len(self._paths["val"]), 3 * self._spec.eval_size**2, np.int64)]
        shrinks, room = np.array(_SHRINKS)[None], budget - int(sizes[0].sum())
        # Slots are filled from the first on: those behind the budget need no size, of 100 M images 3 GB of them.
        for start in range(0, len(self._sizes["train"]), _SLOTS_AT_ONCE):
            width, height = self._sizes["train"][start : start + _SLOTS_AT_ONCE].astype(np.int64).T
            train = 3 * -(-width[:, None] // shrinks) * -(-height[:, None] // shrinks)
            train *= self._shrinks(np.minimum(width, height)[:, None] >= shrinks * self._spec.train_size)
            sizes.append(train.reshape(-1))
            room -= int(train.sum())
            if room < 0:
                break
        return PixelCache(np.concatenate(sizes), budget)

    def _shrinks(self, possible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of _SHRINKS the crops of each image may ask for, [n, 4], of those that leave enough of the whole image."""
        asked = possible.copy()
        asked[:, 0] = True
        if self._augment.crop == "center":
            asked[:, 1:] = False
        elif self._augment.crop == "squash":  # all of the image, always
            asked[:, :-1] &= ~possible[:, 1:]
        return asked


def stream(
    manifest: Manifest,
    data: DataConfig,
    augment: AugmentConfig,
    spec: ImageSpec,
    seed: int,
    requests: Iterable[Request],
    processes: int,
) -> ImageStream:
    """One stream of batches for a whole run: requests of train and val, lazily drawn, perhaps without end.

    processes: loader processes, forked here; 0: a thread of this process. Close it, or use it as a context manager.
    Raises, from its iteration, DataError naming a file that can no longer be read, TrainingError if a process died."""
    return ImageStream(Reader(manifest, data, augment, spec, seed), requests, processes)
