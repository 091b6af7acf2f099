"""CIFAR-10's own files, read as data: nothing that a file says is ever called.

The files of the Python version are pickles: programs for a stack machine that may name any function to be called. Here the few
instructions that lists, texts and arrays of bytes need are carried out by hand, on values alone; of all names only those with
which numpy describes an array are known, and they too are carried out here. Everything else is refused.
"""

from __future__ import annotations

import math
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sports_ray.errors import DataError

SIDE, PIXELS = 32, 3 * 32 * 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOST_BYTES = 1 << 30

_ARRAY = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_KNOWN = _ARRAY | {"numpy ndarray", "numpy dtype", "_codecs encode"}
_NUMBERS: dict[str, np.dtype[Any]] = {"u1": np.dtype("u1"), "i8": np.dtype("<i8"), "i4": np.dtype("<i4")}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1"),
    *("BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8"),
}
_CURE = "fetch it again"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Batch(NamedTuple):
    """One file of photographs."""

    pixels: NDArray[np.uint8]
    """[n, 3, 32, 32], RGB."""
    labels: list[int]
    """[n], places in the classes."""


def read_python_batch(path: Path) -> Batch:
    """A file such as data_batch_1 of cifar-10-batches-py. Raises DataError for anything else."""
    content = _dictionary(path)
    data, labels = content.get("data"), content.get("labels")
    want = f"a dictionary with data, uint8 [n, {PIXELS}], and n labels"
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: no batch of CIFAR-10", got=f"data: {found}", want=want)
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if not isinstance(labels, list) or len(labels) != len(data):
        count = f"{len(labels)} of them" if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{path}: no batch of CIFAR-10", got=f"labels: {count}", want=want)
    return Batch(np.ascontiguousarray(data).reshape(-1, 3, SIDE, SIDE), _checked_labels(path, labels))


def read_binary_batch(path: Path) -> Batch:
    """A file such as data_batch_1.bin of cifar-10-batches-bin: one byte of label and 3,072 of pixels for each photograph."""
    data = np.frombuffer(_bytes(path), np.uint8)
    if not len(data) or len(data) % (1 + PIXELS):
        want = f"a multiple of {1 + PIXELS:,}: a label and the pixels of each photograph"
        raise DataError(f"{path}: no batch of CIFAR-10", got=f"{len(data):,} bytes", want=want, cure=_CURE)
    rows = data.reshape(-1, 1 + PIXELS)
    labels = _checked_labels(path, rows[:, 0].tolist())
    return Batch(np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, SIDE, SIDE), labels)


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Names of the classes, as batches.meta or batches.meta.txt gives them."""
    text = folder / "batches.meta.txt"
    if text.is_file():
        names = [line.strip() for line in _bytes(text).decode("utf-8", "replace").splitlines() if line.strip()]
    else:
        names = _dictionary(folder / "batches.meta").get("label_names")  # type: ignore[assignment]
    sound = isinstance(names, list) and all(isinstance(name, str) and name.isprintable() for name in names)
    if not sound or len(set(names)) != len(CLASSES) or not all(name and "/" not in name for name in names):
        raise DataError(
            f"{folder}: names of the classes",
            got=_shown(names),
            want=f"{len(CLASSES)} such as {', '.join(CLASSES[:3])}",
        )
    return tuple(names)


def _shown(names: Any) -> str:
    return ", ".join(map(repr, names[:3])) if isinstance(names, list) and names else "none"


def _checked_labels(path: Path, labels: list[Any]) -> list[int]:
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < len(CLASSES)]
    if wrong:
        got = wrong[0] if type(wrong[0]) is int else type(wrong[0]).__name__
        raise DataError(f"{path}: labels", got=got, want=f"whole numbers from 0 to {len(CLASSES) - 1}")
    return labels


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}", got=f"{path.stat().st_size:,} bytes", want=f"at most {MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}", got=error.strerror, want="a file of CIFAR-10", cure=_CURE) from None


def _dictionary(path: Path) -> dict[str, Any]:
    found = read_values(_bytes(path), str(path))
    if not isinstance(found, dict):
        raise DataError(f"{path}: no batch of CIFAR-10", got=type(found).__name__, want="a dictionary")
    return {_text(key): value for key, value in found.items()}


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def read_values(content: bytes, where: str) -> Any:
    """The value that a pickle stands for, of dicts, lists, tuples, texts, integers and numpy arrays of them.

    Texts of Python 2 are read as Latin-1. Raises DataError for a damaged file and for all that would need code to run."""
    machine = _Machine(where)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{where}: damaged", got=reason, want="a pickle of plain values", cure=_CURE) from None
    return machine.result


class _Name(NamedTuple):
    """A name that numpy uses to describe an array; never looked up."""

    text: str


class _Dtype(NamedTuple):
    kind: str


class _Array:
    """An array that is being described."""

    value: NDArray[Any] | None = None


class _Machine:
    """Carries out one instruction after the other, on values alone."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._stack: list[Any] = []
        self._marks: list[int] = []
        """Heights of the stack."""
        self._memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        """One instruction, by its name in `pickletools`. Raises DataError for one that is refused."""
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_DICT" | "EMPTY_LIST":
                stack.append({} if name == "EMPTY_DICT" else [])
            case "TUPLE" | "LIST":
                found = self._above_mark()
                stack.append(tuple(found) if name == "TUPLE" else found)
            case "APPEND" | "APPENDS":
                found = self._above_mark() if name == "APPENDS" else self._take(1)
                self._top(list).extend(found)
            case "SETITEM" | "SETITEMS" | "DICT":
                found = self._take(2) if name == "SETITEM" else self._above_mark()
                if name == "DICT":
                    stack.append({})
                self._set(self._top(dict), found)
            case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self._memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                words = argument if name == "GLOBAL" else " ".join(map(_text, self._take(2)))
                if words not in _KNOWN:
                    raise self._refused(f"the name {words.replace(' ', '.')}")
                stack.append(_Name(words))
            case "REDUCE":
                stack.append(self._reduced(*self._take(2)))
            case "BUILD":
                self._build(*self._take(1))
            case "STOP":
                (self.result,) = self._take(1)
            case _ if name in _VALUES:
                stack.append(argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _TUPLES:
                stack.append(tuple(self._take(_TUPLES[name])))
            case _:
                raise self._refused(f"the instruction {name}")

    def _reduced(self, name: Any, arguments: Any) -> Any:
        """What numpy's own functions would make of these arguments, or the beginning of it."""
        if isinstance(name, _Name) and name.text in _ARRAY and arguments[0] == _Name("numpy ndarray"):
            return _Array()
        if isinstance(name, _Name) and name.text == "numpy dtype" and arguments[0] in _NUMBERS:
            return _Dtype(arguments[0])
        if isinstance(name, _Name) and name.text == "_codecs encode" and arguments[1:] == ("latin1",):
            return arguments[0].encode("latin-1")
        raise self._refused("a call of " + (name.text.replace(" ", ".") if isinstance(name, _Name) else "a value"))

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, _Dtype) and state[1] in ("|", "<") and state[2:5] == (None, None, None):
            return
        if not isinstance(target, _Array) or target.value is not None or not isinstance(state[2], _Dtype):
            raise self._refused("a state that no array of numbers has")
        _, shape, kind, fortran, data = state
        data = data.encode("latin-1") if isinstance(data, str) else data
        flat = np.frombuffer(data, _NUMBERS[kind.kind])
        if math.prod(shape) != len(flat):
            raise ValueError(f"an array {list(shape)} of {len(flat):,} values")
        target.value = flat.reshape(shape, order="F" if fortran else "C")

    def _refused(self, what: str) -> DataError:
        cure = "fetch cifar-10-python.tar.gz or cifar-10-binary.tar.gz from its authors"
        want = "lists, texts and arrays of numbers, as CIFAR-10 has them"
        return DataError(f"{self._where}: refused, nothing of it was run", got=what, want=want, cure=cure)

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__} where one was expected")
        return self._stack[-1]

    def _set(self, target: dict[Any, Any], found: list[Any]) -> None:
        for key, value in zip(found[::2], found[1::2], strict=True):
            if not isinstance(key, (str, bytes, int)):  # anything else may take for ever to be hashed
                raise self._refused("a key that is no text")
            target[key] = value

    def _above_mark(self) -> list[Any]:
        return self._take(len(self._stack) - self._marks.pop())

    def _take(self, count: int) -> list[Any]:
        """The uppermost values, taken off the stack; of arrays that were described the array."""
        if count > len(self._stack):
            raise ValueError("too few values")
        place = len(self._stack) - count
        found = self._stack[place:]
        del self._stack[place:]
        return [one.value if isinstance(one, _Array) and one.value is not None else one for one in found]
