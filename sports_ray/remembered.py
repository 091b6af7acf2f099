"""What this machine remembers so that the next command is faster. Never needed: damaged or unwritable it costs time alone."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

_DIGEST = 32


def home() -> Path:
    """$XDG_CACHE_HOME/sports-ray or ~/.cache/sports-ray."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sports-ray"


def place_of(kind: str, key: str, folder: Path | None = None) -> Path:
    """The file for what is known of `key`, in `folder` or at home."""
    # A path may hold bytes that are no UTF-8.
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    return (folder or home()) / f"{kind}-{digest[:24]}"


def recall(place: Path) -> memoryview | None:
    """What was remembered there; None where there is nothing, or nothing to be trusted."""
    try:
        data = memoryview(place.read_bytes())
    except OSError:
        return None
    return data[_DIGEST:] if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST] else None


def remember(place: Path, content: bytes | memoryview) -> None:
    """Writes a digest and the content behind it, in one move: a reader sees the old file or the new one, whole."""
    with suppress(OSError):  # a read-only home is no reason not to work
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=place.name, suffix=".tmp")
        with open(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        os.replace(name, place)
