"""K runs that share one assignment of photographs to folds: each learns from all folds but one.

folds/NAME/folds.csv      path, label, fold and sha256 of each photograph; written before the first run begins
folds/NAME/oof.csv, ...   see predict/out_of_fold.py
NAME-fold0 ...            the runs, in the same store: ordinary ones, each with a record of its own
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass

from sports_ray.config import TrainConfig
from sports_ray.data import folds
from sports_ray.data.manifest import Manifest, fold_manifests
from sports_ray.errors import ConfigError, RunError
from sports_ray.orchestrate.plan import Plan, make_plan
from sports_ray.store.storage import Storage, below, open_storage

FOLDS, FOLDER = "folds.csv", "folds"


@dataclass(frozen=True)
class FoldRuns:
    """All runs of a cross-validation, begun or not."""

    name: str
    store: str
    config: TrainConfig
    manifests: tuple[Manifest, ...]
    """One for each fold, which is its validation split."""

    @property
    def count(self) -> int:
        return len(self.manifests)

    @property
    def runs(self) -> list[str]:
        return [f"{self.name}-fold{fold}" for fold in range(self.count)]

    def storage(self) -> Storage:
        return open_storage(below(self.store, f"{FOLDER}/{self.name}"))

    def plan(self, fold: int, extend: str = "") -> Plan:
        """As `plan.make_plan`, of the run that holds out a fold."""
        data = dataclasses.replace(self.config.data, fold=fold)
        store = dataclasses.replace(self.config.store, root=self.store, run=self.runs[fold])
        config = dataclasses.replace(self.config, data=data, store=store)
        return make_plan(config, manifest=self.manifests[fold], extend=extend)

    def keep_assignment(self) -> None:
        """Writes folds.csv before the first run begins; RunError if the photographs have been cut otherwise before."""
        storage, content = self.storage(), self.assignment()
        known = storage.find(FOLDS)
        if known is None:
            storage.write(FOLDS, content)
        elif bytes(known) != content:
            raise RunError(
                f"folds of {self.name}",
                got="photographs that were cut into other folds before",
                want=f"those of {storage.uri}/{FOLDS}",
                cure="another --run NAME, or the old photographs",
            )

    def assignment(self) -> bytes:
        """folds.csv: the same bytes wherever the photographs lie."""
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["path", "label", "fold", "sha256"])
        rows = []
        for fold, manifest in enumerate(self.manifests):
            columns = [manifest.rows("val").column(name).to_pylist() for name in ("path", "label", "sha256")]
            rows += [
                (path, manifest.classes[label], fold, digest) for path, label, digest in zip(*columns, strict=True)
            ]
        writer.writerows(sorted(rows))
        return out.getvalue().encode()


def plan_folds(config: TrainConfig, count: int, progress: Callable[[int, int], None] | None = None) -> FoldRuns:
    """Cuts the photographs, and checks the run of the first fold. Writes nothing. Raises UserError for what has to be mended."""
    if config.data.folds not in (0, count):
        raise ConfigError("--folds", got=count, want=f"data.folds = {config.data.folds}, or that left out")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, folds=count, fold=0))
    folds.check(config.data)
    if not count:
        raise ConfigError("--folds", got=0, want="2 or more")
    manifests = tuple(fold_manifests(config.data, progress=progress))
    # Its default name tells settings and photographs apart, as that of any run does.
    first = make_plan(config if not config.store.run else _renamed(config), manifest=manifests[0])
    name = config.store.run or first.name
    return FoldRuns(name, first.store, config, manifests)


def _renamed(config: TrainConfig) -> TrainConfig:
    store = dataclasses.replace(config.store, run=f"{config.store.run}-fold0")
    return dataclasses.replace(config, store=store)
