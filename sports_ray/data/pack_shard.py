"""The bytes of a pack: photographs, the Arrow files of the shards, and their rows in the index."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sports_ray.config import DataConfig
from sports_ray.data.inspect import Facts
from sports_ray.data.pack import BATCH_ROWS, index_schema
from sports_ray.data.pack_source import Source

if TYPE_CHECKING:
    import pyarrow as pa

QUALITY = 92
"""Of JPEGs that are encoded anew."""


class Packed(NamedTuple):
    """A photograph as it will be packed."""

    source: Source
    data: bytes
    facts: Facts


def shrunk(data: bytes, short_side: int, facts: Facts) -> bytes:
    """The same photograph upright as JPEG with this short side, px; the same bytes if it is no larger, or damaged."""
    if not short_side or facts.fault or min(facts.width, facts.height) <= short_side:
        return data
    from PIL import Image

    from sports_ray.data.decode import open_image, shrink_to

    image = open_image(data, max_pixels=DataConfig().max_pixels)
    side = min(image.width, image.height)
    pixels = image.pixels(shrink_to(side, 2 * short_side)).permute(1, 2, 0).contiguous().numpy()
    size = (round(image.width * short_side / side), round(image.height * short_side / side))
    sink = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS).save(sink, "JPEG", quality=QUALITY)
    return sink.getvalue()


def shard_file(group: Sequence[Packed]) -> tuple[pa.Buffer, int]:
    """An Arrow IPC file of one batch, and where in it the bytes of the first photograph begin."""
    import pyarrow as pa

    sources, facts = [one.source for one in group], [one.facts for one in group]
    columns = {
        "id": pa.array([one.id for one in sources], pa.string()),
        "path": pa.array([one.id for one in sources], pa.string()),
        "label": pa.array([one.label for one in sources], pa.int32()),
        "split": pa.array([one.split for one in sources], pa.string()),
        "sha256": pa.array([one.sha256 for one in facts], pa.string()),
        "width": pa.array([one.width for one in facts], pa.int32()),
        "height": pa.array([one.height for one in facts], pa.int32()),
        "image": pa.array([one.data for one in group], pa.large_binary()),
    }
    content = ipc_file([pa.record_batch(columns)], {})
    images = pa.ipc.open_file(content).get_batch(0).column("image").buffers()[2]
    return content, images.address - content.address if images else 0


def index_part(group: Sequence[Packed], number: int, start: int) -> pa.Table:
    """The rows of a shard in the index; `start`: where its first photograph begins."""
    import numpy as np
    import pyarrow as pa

    sizes = np.array([len(one.data) for one in group], np.int64)
    columns = {
        "id": [one.source.id for one in group],
        "split": [one.source.split for one in group],
        "label": [one.source.label for one in group],
        **{name: [getattr(one.facts, name) for one in group] for name in Facts._fields},
        "shard": [number] * len(group),
        "offset": start + np.cumsum(sizes) - sizes,
        "size": sizes,
    }
    schema = index_schema()
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def index_batches(parts: Sequence[pa.Table]) -> list[pa.RecordBatch]:
    """The whole index, in batches of BATCH_ROWS rows and a last one."""
    import pyarrow as pa

    table = pa.concat_tables(parts)
    starts = range(0, table.num_rows, BATCH_ROWS)
    return [table.slice(start, BATCH_ROWS).combine_chunks().to_batches()[0] for start in starts]


def ipc_file(batches: Sequence[pa.RecordBatch], meta: Mapping[str, object]) -> pa.Buffer:
    """An Arrow IPC file of these batches, `meta` as JSON in its schema."""
    import pyarrow as pa

    schema = batches[0].schema
    if meta:
        schema = schema.with_metadata({"sports_ray": json.dumps(meta)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    return sink.getvalue()
