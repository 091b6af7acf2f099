"""Blocks: equal rows give equal bytes, and damage counts as missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sports_ray.errors import TrainingError
from sports_ray.predict.blocks import FOLDER, ROWS, Shelf, decode, encode, prove

CLASSES = 5
ERRORS: list[str | None] = [None, "an image is empty: 0 bytes", None]


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, CLASSES)).astype(np.float32)


def shelf_of(store: Path, count: int = 2 * ROWS + 40) -> Shelf:
    return Shelf.of(str(store), "a/model", {"weights": "x"}, count, CLASSES)


def test_a_block_reads_back_bit_for_bit_and_its_bytes_depend_on_its_rows_alone() -> None:
    logits = rows(3)
    logits[0, :3] = [np.nan, np.inf, -0.0]
    content = encode(512, logits, ERRORS)
    assert content == encode(512, np.asfortranarray(logits), list(ERRORS))
    found = decode(content, 512, 3, CLASSES)
    assert found is not None and found.errors == ERRORS and found.start == 512
    assert found.logits.tobytes() == logits.tobytes()
    for start, count, classes in ((256, 3, CLASSES), (512, 2, CLASSES), (512, 5, 3)):
        assert decode(content, start, count, classes) is None


def test_any_flipped_byte_and_any_cut_counts_as_missing() -> None:
    content = encode(0, rows(3), ERRORS)
    values = content.index(rows(3).tobytes()[:8])
    for place in [*range(values, values + 60, 7), *range(0, len(content), 41)]:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        found = decode(damaged, 0, 3, CLASSES)
        # What holds no row, such as the writer's name, may change unseen.
        assert found is None or (found.logits.tobytes() == rows(3).tobytes() and found.errors == ERRORS), place
    for length in range(0, len(content), 37):
        assert decode(content[:length], 0, 3, CLASSES) is None


def test_only_views_that_are_not_there_are_missing(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path)
    assert shelf.missing(["plain", "plain-flip"]) == {block: ["plain", "plain-flip"] for block in range(3)}
    shelf.write("plain", 1, rows(ROWS), [None] * ROWS)
    shelf.write("plain-flip", 1, rows(ROWS), [None] * ROWS)
    shelf.write("plain", 2, rows(40), [None] * 40)
    assert shelf.missing(["plain", "plain-flip"]) == {0: ["plain", "plain-flip"], 2: ["plain-flip"]}
    assert shelf.missing(["plain"]) == {0: ["plain"]}
    with pytest.raises(TrainingError, match=r"block 2 of plain; got \(39, 5\) logits; wanted \(40, 5\)"):
        shelf.write("plain", 2, rows(39), [None] * 39)


def test_a_damaged_block_is_gone_after_it_was_read(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path)
    shelf.write("plain", 0, rows(ROWS), [None] * ROWS)
    assert shelf.read("plain", 0) is not None and shelf.read("plain", 1) is None
    (file,) = (tmp_path / FOLDER).rglob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert shelf.read("plain", 0) is None and not file.exists()
    assert 0 in shelf.missing(["plain"])


def test_ids_out_are_ids_in() -> None:
    def parts(*spans: tuple[int, int]) -> list[np.ndarray]:
        return [np.arange(*span) for span in spans]

    prove(iter(parts((0, 3), (3, 7))), 7, "x")
    for spans in ([(0, 3)], [(0, 3), (2, 7)], [(0, 3), (4, 8)], [(0, 7), (7, 8)], []):
        with pytest.raises(TrainingError, match="ids of x"):
            prove(iter(parts(*spans)), 7, "x")
