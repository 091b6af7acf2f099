"""Bytes of what a run stores: canonical JSON, JSON records that prove themselves, and safetensors without copies.

safetensors: u64 little-endian header length, JSON header padded with spaces to 8 bytes, then the tensors, with no gap
(https://huggingface.co/docs/safetensors, "Format"). Written here by hand so that tensors stream from where they lie.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sports_ray.errors import RunError, TrainingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Name in the file, bytes of an element, name in torch; in the order in which safetensors lays tensors out.
_DTYPES = {
    "U64": (8, "uint64"), "I64": (8, "int64"), "F64": (8, "float64"), "F32": (4, "float32"), "U32": (4, "uint32"),
    "I32": (4, "int32"), "BF16": (2, "bfloat16"), "F16": (2, "float16"), "U16": (2, "uint16"), "I16": (2, "int16"),
    "I8": (1, "int8"), "U8": (1, "uint8"), "BOOL": (1, "bool"),
}  # fmt: skip
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES)}


def canonical(value: object) -> str:
    """JSON text that depends on the value alone: sorted keys, no spaces, NaN and infinities as null."""
    return _canonical(_finite(value))


def _canonical(finite: object) -> str:
    return json.dumps(finite, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def seal(record: Mapping[str, object]) -> bytes:
    """The record as readable JSON with the sha256 of its canonical form added, so that any change to it shows."""
    body = _finite({key: value for key, value in record.items() if key != "sha256"})
    digest = hashlib.sha256(_canonical(body).encode()).hexdigest()
    text = json.dumps({**body, "sha256": digest}, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    return text.encode() + b"\n"


def unseal(data: bytes | bytearray, what: str) -> dict[str, Any]:
    """The record that `seal` made these very bytes of, without its sha256; RunError if a bit differs."""
    try:
        record = json.loads(data)
        intact = isinstance(record, dict) and seal(record) == data
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise RunError(what, got="a damaged record", want="JSON that agrees with the sha256 in it")
    del record["sha256"]
    return dict(record)


class Span(NamedTuple):
    """Where a tensor lies in the data part of a safetensors file: bytes [start, stop)."""

    dtype: str
    shape: list[int]
    start: int
    stop: int


class Encoded:
    """Tensors as a safetensors file, in chunks. Can be iterated more than once; copies only what is not dense.

    The bytes are a function of names, dtypes, shapes and values, and equal those of `safetensors.torch.save`.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        names = {tensor.dtype: _dtype_name(name, tensor) for name, tensor in tensors.items()}
        order = sorted(tensors.items(), key=lambda item: (_RANKS[names[item[1].dtype]], item[0]))
        self._tensors = [tensor for _, tensor in order]
        header, end = {}, 0
        for name, tensor in order:
            start, end = end, end + tensor.numel() * tensor.element_size()
            shape = list(tensor.shape)
            header[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self.size = len(self._head) + end

    def __iter__(self) -> Iterator[memoryview]:
        yield memoryview(self._head)
        for tensor in self._tensors:
            if tensor.numel():
                yield _memory(tensor)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for chunk in self:
            digest.update(chunk)
        return digest.hexdigest()


def parse(data: bytes | bytearray) -> tuple[dict[str, Span], int]:
    """Spans by tensor name, and where the data part begins; RunError unless the file is whole and without gaps."""
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError("the header is cut off")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        spans = {name: Span(e["dtype"], e["shape"], *e["data_offsets"]) for name, e in header.items()}
        end = 0
        for name, span in sorted(spans.items(), key=lambda item: item[1][2:]):
            if not all(isinstance(n, int) and n >= 0 for n in (*span.shape, span.start, span.stop)):
                raise ValueError(f"tensor {name} has sizes that are none")
            if span.start != end or span.stop - span.start != math.prod(span.shape) * _DTYPES[span.dtype][0]:
                raise ValueError(f"tensor {name} does not lie where its size says")
            end = span.stop
        if end != len(data) - 8 - length:
            raise ValueError("the data has another length than the header says")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError("safetensors file", got=str(error), want="a whole file") from error
    return spans, 8 + length


def decode(data: bytearray) -> dict[str, Tensor]:
    """Tensors of a safetensors file, each in memory of its own; RunError if the file is not whole."""
    import torch

    spans, base = parse(data)
    tensors = {}
    for name, span in spans.items():
        dtype: torch.dtype = getattr(torch, _DTYPES[span.dtype][1])
        count = math.prod(span.shape)
        if count:
            # A clone, because torch's own memory is aligned, and the file's buffer goes as soon as it is read.
            flat = torch.frombuffer(data, dtype=dtype, count=count, offset=base + span.start).clone()
        else:
            flat = torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(span.shape)
    return tensors


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _dtype_name(name: str, tensor: Tensor) -> str:
    found = str(tensor.dtype).removeprefix("torch.")
    for dtype, (_, torch_name) in _DTYPES.items():
        if torch_name == found:
            return dtype
    known = ", ".join(torch_name for _, torch_name in _DTYPES.values())
    raise TrainingError(f"cannot store tensor {name}", got=f"dtype {found}", want=known)


def _memory(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)
