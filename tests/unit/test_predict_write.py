"""Files that an evaluation leaves: their bytes follow from their rows, and one that is not whole answers for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sports_ray.errors import ConfigError
from sports_ray.predict.columns import ENSEMBLE, Part
from sports_ray.predict.images import Images
from sports_ray.predict.member import TAKEN_NAMES
from sports_ray.predict.write import (
    PREDICTIONS,
    SCORES,
    PredictionsFile,
    label_lists,
    parse_header,
    read_scores,
    submission,
    write_scores,
)
from sports_ray.store.storage import Storage, open_storage

ROWS, CLASSES = 9000, 3
BAD = {7: "an image is empty: 0 bytes", 4100: "an image is too large"}


def images() -> Images:
    columns = {
        "id": pa.array(range(ROWS), pa.int64()),
        "path": pa.array([f"a/{row:05d}.jpg" for row in range(ROWS)]),
        "label": pa.array([row % CLASSES for row in range(ROWS)], pa.int32()),
        "sha256": pa.array([""] * ROWS),
        "error": pa.nulls(ROWS, pa.string()),
    }
    return Images("/nowhere", pa.table(columns))


def table(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((ROWS, CLASSES), dtype=np.float32)


def parts(size: int) -> Iterator[Part]:
    for start in range(0, ROWS, size):
        rows = slice(start, min(ROWS, start + size))
        errors = [BAD.get(row) for row in range(ROWS)[rows]]
        yield Part(start, {"m": table(0)[rows], "ensemble": table(1)[rows]}, errors)


def put(storage: Storage, size: int = 256) -> dict[str, Any]:
    file = PredictionsFile(images(), ["m", "ensemble"], {"classes": ["x", "y", "ü"]})
    for part in parts(size):
        file.add(part)
    assert file.close() == ROWS
    return file.put(storage)


def test_every_row_is_there_once_with_null_where_there_is_an_error(tmp_path: Path) -> None:
    facts = put(open_storage(str(tmp_path)))
    assert facts["size"] == (tmp_path / PREDICTIONS).stat().st_size
    found = pq.read_table(tmp_path / PREDICTIONS)
    assert (
        found.column("id").to_pylist() == list(range(ROWS))
        and found.schema.metadata[b"classes"] == '["x", "y", "ü"]'.encode()
    )
    assert {row: error for row, error in enumerate(found.column("error").to_pylist()) if error} == BAD
    for name, seed in (("m", 0), ("ensemble", 1)):
        assert found.schema.field(name).type == pa.list_(pa.float32())
        rows = found.column(name).to_pylist()
        assert [row for row, values in enumerate(rows) if values is None] == list(BAD)
        good = [row for row in range(ROWS) if row not in BAD]
        np.testing.assert_array_equal(np.array([rows[row] for row in good], np.float32), table(seed)[good])


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (put(open_storage(str(tmp_path / name))) for name in "ab")
    assert (
        first == second and (tmp_path / "a" / PREDICTIONS).read_bytes() == (tmp_path / "b" / PREDICTIONS).read_bytes()
    )
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [PREDICTIONS] * 2


def test_only_a_whole_evaluation_of_this_digest_answers(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert read_scores(storage, "d") is None
    scores = {"digest": "d", "data": {"unread": 0}, "files": {PREDICTIONS: put(storage)}, "acc1": 0.5}
    assert write_scores(storage, scores) == scores == read_scores(storage, "d")
    assert read_scores(storage, "another") is None
    content = (tmp_path / SCORES).read_bytes()
    (tmp_path / SCORES).write_bytes(content.replace(b"0.5", b"0.6"))
    assert read_scores(storage, "d") is None
    write_scores(storage, {**scores, "data": {"unread": 1}})
    assert read_scores(storage, "d") is None, "files that could be read only for a time are worth another try"
    (tmp_path / SCORES).write_bytes(content)
    (tmp_path / PREDICTIONS).write_bytes(b"short")
    assert read_scores(storage, "d") is None


@pytest.mark.parametrize("text", ["", "id", "id,", "id,id", "a,b,c"])
def test_headers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="wanted two different names; cure: for example --header image_id,class"):
        parse_header(text)


def test_a_row_that_is_not_finite_names_no_class() -> None:
    table = np.array([[0.1, 0.9], [0, 0], [0.7, 0.3]], np.float32)
    text = submission(["a", "b", "c"], table, [None] * 3, ["x", "y"], ("id", "class"), fill="?")
    assert text == "id,class\na,y\nb,?\nc,x\n"
    text = submission(["a", "b", "c"], table, [None] * 3, ["x", "y"], ("id", "class"), top=1)
    assert text == "id,class,probability\na,y,0.900000\nb,,\nc,x,0.700000\n"
    table[1] = np.nan
    text = label_lists(["a", "b", "c"], table, [None] * 3, ["x", "y"], np.full(2, 0.5), ("id", "labels"), "?")
    assert text == "id,labels,x,y\na,y,0.100000,0.900000\nb,?,,\nc,x,0.700000,0.300000\n"


def test_no_run_may_be_called_as_a_column_of_the_file_or_as_the_ensemble() -> None:
    several = replace(images(), label_sets=((0, 1), (2,), (1,)))
    fixed = {name for each in (images(), several) for name in PredictionsFile(each, [], {})._schema.names}
    assert {*fixed, ENSEMBLE} == set(TAKEN_NAMES)
