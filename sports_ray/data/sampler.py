"""Which photographs an epoch draws, and where each stands: a pure function of (seed, epoch), made of `order`.

A photograph that is drawn more than once stands at several positions, and is augmented at each by that position's draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sports_ray.config import DataConfig, TrainConfig
from sports_ray.data.order import PICK, generator, order, spans
from sports_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sports_ray.data.manifest import Manifest

Rows = NDArray[np.int64]


def check(data: DataConfig) -> None:
    """ConfigError for settings that do not go together."""
    if data.sampler == "weighted" and data.min_per_class:
        cure = "one of the two: with data.sampler = weighted all classes are drawn as often already"
        raise ConfigError(
            "data.min_per_class", got=data.min_per_class, want="0 with data.sampler = weighted", cure=cure
        )


class Sampler:
    """Draws the epochs of one training split: see `data.sampler` and `data.min_per_class`.

    shuffle: each photograph once, and of a class with fewer than min_per_class so many copies that it has as many; over
    the epochs all photographs of a class are copied equally often.
    weighted: as many as there are, of each class the same number but for one, whatever its size (what torch's
    WeightedRandomSampler does with weights 1 / class size, without its chance); none of a class comes again before all
    others of it have come."""

    def __init__(self, data: DataConfig, seed: int, labels: NDArray[np.integer]) -> None:
        """labels: [n], in the order of the split's table."""
        self._seed, self._labels, self._n = seed, labels, len(labels)
        self._weighted, least = data.sampler == "weighted", data.min_per_class
        self._classes = _rows_of_classes(labels) if self._weighted or least else []
        """Label and rows of each class that has a photograph."""
        self._more = [] if self._weighted else [max(0, least - len(rows)) for _, rows in self._classes]

    @classmethod
    def of(cls, config: TrainConfig, manifest: Manifest) -> Sampler:
        """Raises DataError where photographs show several classes, and these are to be balanced."""
        data = config.data
        balanced = data.sampler == "weighted" or data.min_per_class or config.loop.class_weights == "balanced"
        if balanced and manifest.multilabel:
            raise DataError(
                "data.sampler, data.min_per_class and loop.class_weights",
                got="photographs with several classes",
                want="one class a photograph",
                cure="leave them as they are by default",
            )
        return cls(config.data, config.loop.seed, manifest.rows("train").column("label").to_numpy())

    def __len__(self) -> int:
        """Positions in an epoch; all epochs have as many."""
        return self._n + sum(self._more)

    @property
    def words(self) -> str:
        """How often an epoch has each photograph."""
        return "as often as sampled" if self._classes else "once an epoch"

    def rows(self, epoch: int) -> Rows:
        """Row of the training table at each position of an epoch, int64 [len(self)]."""
        places = order(self._seed, epoch, len(self))
        if self._weighted:
            return self._balanced(epoch)[places]
        return self._with_copies(epoch)[places] if sum(self._more) else places

    def class_shares(self, classes: int) -> NDArray[np.float64]:
        """Positions that each of K classes has in an epoch, in the mean over the epochs: float64 [K]."""
        counts = np.bincount(self._labels, minlength=classes).astype(np.float64)
        if self._weighted:
            return np.where(counts > 0, self._n / len(self._classes), 0.0)
        for (label, _), more in zip(self._classes, self._more, strict=True):
            counts[label] += more
        return counts

    def _balanced(self, epoch: int) -> Rows:
        """An equal part for each class, int64 [n], class after class."""
        found = np.empty(self._n, np.int64)
        for place, (label, rows) in enumerate(self._classes):
            # Where parts differ by one, each class has the larger ones in turn.
            start, stop = spans(self._n, len(self._classes), (place + epoch) % len(self._classes))
            found[start:stop] = self._picked(epoch, label, rows, stop - start)
        return found

    def _picked(self, epoch: int, label: int, rows: Rows, count: int) -> Rows:
        rounds = -(-count // len(rows))
        raw = generator(self._seed, PICK, epoch, label).bit_generator.random_raw(rounds * len(rows))
        shuffled = rows[np.argsort(raw.reshape(rounds, len(rows)), axis=1, kind="stable")]
        return shuffled.reshape(-1)[:count]

    def _with_copies(self, epoch: int) -> Rows:
        """All rows, then the copies: those of an epoch begin with the photograph at which the last one's ended."""
        copies = [
            rows[(epoch * more + np.arange(more)) % len(rows)]
            for (_, rows), more in zip(self._classes, self._more, strict=True)
        ]
        return np.concatenate([np.arange(self._n), *copies])


def _rows_of_classes(labels: NDArray[np.integer]) -> list[tuple[int, Rows]]:
    rows = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[rows], return_index=True)
    return list(zip(found.tolist(), np.split(rows, starts[1:]), strict=True))
