"""What an evaluation leaves: predictions.parquet, scores.json, and a submission as CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sports_ray.data.label_sets import SEPARATOR
from sports_ray.errors import ConfigError, DataError, RunError, StorageError
from sports_ray.predict.columns import Part, Table, output_errors
from sports_ray.predict.images import Images
from sports_ray.score.multilabel import chosen
from sports_ray.store.codec import seal, unseal
from sports_ray.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

PREDICTIONS, SCORES = "predictions.parquet", "scores.json"
GROUP_ROWS = 4096
"""Rows of a row group of predictions.parquet."""
_CHUNK = 1 << 22


class PredictionsFile:
    """predictions.parquet, in a file without a name until it is put in place; the same rows give the same bytes.

    Columns: id (int64), path, label (int32, -1: unknown; multi-label: labels, an int32 list, null: unknown), error
    (string or null), then a float32 list a column of predictions, null where there is an error. Zeros (multi-label: NaN)
    where the model's output is not finite."""

    def __init__(self, images: Images, columns: Sequence[str], meta: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        label = ("labels", pa.list_(pa.int32())) if images.label_sets else ("label", pa.int32())
        fields = [("id", pa.int64()), ("path", pa.string()), label, ("error", pa.string())]
        fields += [(name, pa.list_(pa.float32())) for name in columns]
        texts = {key: json.dumps(value, ensure_ascii=False) for key, value in meta.items()}
        self._schema = pa.schema(fields, metadata=texts)
        self._images, self._waiting, self._rows = images, list[Part](), 0
        self._file = tempfile.TemporaryFile(prefix="sports-ray-")  # noqa: SIM115
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="none", use_dictionary=["path", "error"])

    def add(self, part: Part) -> None:
        self._waiting.append(part)
        if sum(len(one.errors) for one in self._waiting) >= GROUP_ROWS:
            self._flush()

    def close(self) -> int:
        """Ends the file; how many rows it has."""
        self._flush()
        self._writer.close()
        return self._rows

    def put(self, storage: Storage) -> dict[str, Any]:
        """Puts the closed file into a storage, whole and durable; its size and sha256."""
        digest, size = hashlib.sha256(), 0

        def chunks() -> Iterator[bytes]:
            nonlocal size
            self._file.seek(0)
            while chunk := self._file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        storage.write(PREDICTIONS, chunks())
        return {"size": size, "sha256": digest.hexdigest()}

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._waiting:
            return
        errors = [error for part in self._waiting for error in part.errors]
        rows = self._images.table.slice(self._waiting[0].start, len(errors))
        arrays = [rows.column(name).combine_chunks() for name in ("id", "path", "label")]
        if sets := self._images.label_sets:
            labels = [None if label < 0 else sets[label] for label in arrays[2].to_pylist()]
            arrays[2] = pa.array(labels, pa.list_(pa.int32()))
        arrays.append(pa.array(errors, pa.string()))
        for field in list(self._schema)[4:]:
            arrays.append(_lists(np.concatenate([part.columns[field.name] for part in self._waiting]), errors))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(errors))
        self._rows += len(errors)
        self._waiting = []


def _lists(rows: Table, errors: Sequence[str | None]) -> pa.Array:
    import pyarrow as pa

    bad = np.array([error is not None for error in errors])
    lengths = np.where(bad, 0, rows.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = pa.array(bad) if bad.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows[~bad].reshape(-1)), mask=mask)


def write_scores(storage: Storage, scores: Mapping[str, Any]) -> dict[str, Any]:
    """scores.json, sealed: the last file of an evaluation, so that one with it is finished. What a reader finds in it."""
    content = seal(scores)
    storage.write(SCORES, content)
    return unseal(content, SCORES)


def read_scores(storage: Storage, digest: str) -> dict[str, Any] | None:
    """The scores of the evaluation with this digest, if it is finished and its files are there; else None."""
    with suppress(RunError, StorageError):
        content = storage.find(SCORES)
        scores = unseal(content, SCORES) if content is not None else {}
        sizes = {entry.name: entry.size for entry in storage.list()}
        files = scores.get("files", {})
        whole = bool(files) and all(sizes.get(name) == facts["size"] for name, facts in files.items())
        if whole and scores.get("digest") == digest and not scores["data"]["unread"]:
            return scores
    return None


def parse_header(text: str) -> tuple[str, str]:
    """`image_id,class` -> its two names; ConfigError otherwise."""
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ConfigError(
            "--header", got=repr(text), want="two different names", cure="for example --header image_id,class"
        )
    return names[0], names[1]


def submission(
    names: Sequence[str],
    table: Table,
    errors: Sequence[str | None],
    classes: Sequence[str],
    header: tuple[str, str],
    top: int = 0,
    fill: str = "",
) -> str:
    """CSV text, one row an image, sorted by name: its name and most probable class, `fill` where it could not be read or the
    model's output is not finite.

    table: probabilities [N, K]. top = k > 0 adds the probability, and the next k - 1 classes with theirs."""
    if len(set(names)) < len(names):
        raise DataError("names of images", got="one given twice", want="each image once")
    errors = output_errors(table, errors, multilabel=False)
    best = _best(table, max(1, top))
    columns = list(header)
    if top:
        columns.append("probability")
        columns += [word for k in range(2, best.shape[1] + 1) for word in (f"{header[1]}_{k}", f"probability_{k}")]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in sorted(range(len(names)), key=lambda row: names[row]):
        cells: list[str] = [fill if errors[row] is not None else classes[best[row, 0]]]
        if top and errors[row] is None:
            words = [(classes[label], f"{table[row, label]:.6f}") for label in best[row].tolist()]
            cells = [cell for pair in words for cell in pair]
        writer.writerow([names[row], *cells, *[""] * (len(columns) - 1 - len(cells))])
    return out.getvalue()


def label_lists(
    names: Sequence[str],
    table: Table,
    errors: Sequence[str | None],
    classes: Sequence[str],
    thresholds: NDArray[np.float64],
    header: tuple[str, str],
    fill: str = "",
) -> str:
    """CSV text, one row an image, sorted by name: its name, the chosen labels with | between them, and a column for each
    class with its probability. `fill` as the labels where it could not be read or the model's output is not finite;
    probabilities are empty there."""
    if len(set(names)) < len(names):
        raise DataError("names of images", got="one given twice", want="each image once")
    errors = output_errors(table, errors, multilabel=True)
    found = chosen(table, thresholds)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, *classes])
    for row in sorted(range(len(names)), key=lambda row: names[row]):
        if errors[row] is not None:
            writer.writerow([names[row], fill, *[""] * len(classes)])
            continue
        labels = SEPARATOR.join(classes[place] for place in np.flatnonzero(found[row]).tolist())
        writer.writerow([names[row], labels, *(f"{value:.6f}" for value in table[row].tolist())])
    return out.getvalue()


def _best(table: Table, count: int) -> NDArray[np.int64]:
    """Places of the highest values of each row, in falling order; of equal ones the first. A chunk of rows at a time."""
    chunks = np.array_split(table, max(1, len(table) // GROUP_ROWS))
    return np.concatenate([np.argsort(-rows, axis=1, kind="stable")[:, :count] for rows in chunks])


def check_out(path: Path, images: str) -> None:
    """ConfigError, before anything is computed, for what cannot become the table or is the list of its images."""
    if not path.name or path.is_dir():
        raise ConfigError("--out", got=str(path), want="the name of a file", cure="for example --out predictions.csv")
    if "://" not in images and path.resolve() == Path(images).resolve():
        raise ConfigError("--out", got=str(path), want="another file than the list of images")


def write_text(path: Path, text: str) -> None:
    """A text file in place of an older one, whole; ConfigError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError("--out", got=f"{path}: {error.strerror}", want="a file that can be written") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
