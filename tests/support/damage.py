"""Damages to single files, and copies of a run that share what is not damaged."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

GROWING = "timings.jsonl"
"""Appended to in place: a copy must not share it."""


class Damage(NamedTuple):
    """What happens to a file, and the file's path in the run's folder."""

    name: str
    path: str
    inflict: Callable[[Path], None]

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"


def copy_run(run: Path, copy: Path) -> Path:
    """A copy that shares bytes with the run through hard links: only whole files are ever replaced in either."""
    shutil.copytree(
        run, copy, copy_function=lambda old, new: (shutil.copy if old.endswith(GROWING) else os.link)(old, new)
    )
    return copy


def damages(run: Path, path: Path, flips: int) -> Iterator[Damage]:
    """All damages to one file of a run; `flips`: how many bits are flipped at random places, besides the fixed ones."""
    name, size = str(path.relative_to(run)), path.stat().st_size
    for length in sorted(n for n in {0, 1, 8, size // 2, size - 1} if 0 <= n < size):
        yield Damage(f"cut to {length} bytes", name, lambda file, n=length: _replace(file, file.read_bytes()[:n]))  # type: ignore[misc]
    yield Damage("a byte longer", name, lambda file: _replace(file, file.read_bytes() + b"\0"))
    yield Damage("zeros", name, lambda file: _replace(file, bytes(file.stat().st_size)))
    yield Damage("noise", name, lambda file: _replace(file, random.Random(size).randbytes(file.stat().st_size)))
    yield Damage("deleted", name, Path.unlink)
    yield Damage("a folder in its place", name, _make_folder)
    yield Damage("a link to itself in its place", name, _link_to_itself)
    dice = random.Random(f"{name} {size}")
    bits = {0, 7, 8 * (size // 2), 8 * size - 1, *(dice.randrange(8 * size) for _ in range(flips))}
    if size > 300:
        bits |= {8 * 8 + 1, 8 * 100, *(dice.randrange(8 * 300) for _ in range(flips // 4))}  # a file's header
    for bit in sorted(bits):
        yield Damage(f"bit {bit} flipped", name, lambda file, bit=bit: _flip(file, bit))  # type: ignore[misc]


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    _replace(path, content)


def _replace(path: Path, content: bytes | bytearray) -> None:
    path.unlink()
    path.write_bytes(content)


def _make_folder(path: Path) -> None:
    """Cannot be read (EISDIR) even by root, whom no permission stops."""
    path.unlink()
    path.mkdir()


def _link_to_itself(path: Path) -> None:
    """Cannot be read (ELOOP) even by root."""
    path.unlink()
    path.symlink_to(path.name)
