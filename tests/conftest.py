"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from tests.support.s3 import CREDENTIALS

# Before the server of forked children starts, which hands on what it finds; the S3 servers of tests take any key.
os.environ.update(CREDENTIALS)

gc.disable()  # until collection is over: what imports make stays


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(process_of(item)))


def process_of(item: pytest.Item) -> str:
    """With several processes a file stays in one, and Ray's clusters stay in one: they wait for each other's cores."""
    folder = item.path.parent.name
    return folder if folder == "cluster" else f"{folder}/{item.path.stem}"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Several threads for small tensors are slow, and many times slower where others use the cores too.

    Sums are then also in the order of ranks and of other children, which have one thread each."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Folder of real sports photographs, from SPORTS_RAY_PHOTOS or beside the checkout; skips where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data" / "sports100"
    folder = Path(os.environ.get("SPORTS_RAY_PHOTOS", default))
    if not (folder / "train").is_dir():
        pytest.skip("needs the sports photographs: set SPORTS_RAY_PHOTOS to their folder")
    return folder


def pytest_collection_finish() -> None:
    """What imports and collection have made stays to the end: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()
