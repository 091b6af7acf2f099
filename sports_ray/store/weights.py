"""Published weights: NAME.safetensors to predict with, and NAME.json that describes them and holds their sha256.

The pair is two files, so a crash can fall between. When a pair is replaced the sidecar goes first and names the old one as
`previous`: at each moment it describes the weights that are there, and the hash says which description fits.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sports_ray.errors import RunError, StorageError, WeightsError
from sports_ray.store.codec import Encoded, decode, seal, unseal
from sports_ray.store.storage import Storage, is_of_one_file

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

FOLDER = "weights"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def publish(storage: Storage, name: str, tensors: Mapping[str, Tensor], sidecar: Mapping[str, object]) -> str:
    """Write the pair, durably; returns the sha256 of the weights. Equal tensors and sidecar give equal bytes."""
    path, beside = _paths(name)
    encoded = Encoded(tensors)
    digest = encoded.sha256()
    described = {**sidecar, "weights_sha256": digest, "weights_size": encoded.size}
    current = _sidecar(storage, beside)
    if current is not None:
        settled = _fitting(storage, path, current)
        storage.write(beside, seal({**described, "previous": settled}))
    storage.write(path, encoded)
    storage.write(beside, seal(described))
    return digest


def read(storage: Storage, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the sidecar that describes them. WeightsError if they are missing, damaged or not a pair."""
    path, beside = _paths(name)
    content, sidecar = _content(storage, path), _sidecar(storage, beside)
    cure = "run the training command again: it writes the weights from the checkpoint"
    if content is None or sidecar is None:
        lacking = path if content is None else beside
        raise WeightsError(f"{storage.uri}/{lacking}", got="a missing or damaged file", cure=cure)
    digest = hashlib.sha256(content).hexdigest()
    for described in (sidecar, sidecar.get("previous")):
        if described and described.get("weights_sha256") == digest:
            return decode(content), _without_previous(described)
    want = f"sha256 {str(sidecar.get('weights_sha256'))[:12]}…"
    raise WeightsError(f"{storage.uri}/{path}", got="other bytes than its .json describes", want=want, cure=cure)


def describe(storage: Storage, name: str) -> dict[str, Any] | None:
    """The sidecar of the weights that are there, by their size alone if it is settled; None without a whole pair."""
    path, beside = _paths(name)
    sidecar = _sidecar(storage, beside)
    if sidecar is None:
        return None
    if "previous" in sidecar:
        return _fitting(storage, path, sidecar)
    sizes = {entry.name: entry.size for entry in storage.list(FOLDER)}
    return sidecar if sizes.get(f"{name}.safetensors") == sidecar.get("weights_size") else None


def _fitting(storage: Storage, path: str, sidecar: dict[str, Any]) -> dict[str, Any] | None:
    """Which of the sidecar and the one before it describes the file that is there; None if neither does."""
    digest = hashlib.sha256(_content(storage, path) or b"").hexdigest()
    for described in (sidecar, sidecar.get("previous")):
        if described and described.get("weights_sha256") == digest:
            return _without_previous(described)
    return None


def _without_previous(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sidecar.items() if key != "previous"}


def _content(storage: Storage, path: str) -> bytearray | None:
    """A file's bytes; None if there is none, or this one file cannot be read."""
    try:
        return storage.find(path)
    except StorageError as error:
        if not is_of_one_file(error):
            raise
        log.warning("weights.unreadable reason=%s", error)
        return None


def _sidecar(storage: Storage, beside: str) -> dict[str, Any] | None:
    content = _content(storage, beside)
    if content is None:
        return None
    try:
        return unseal(content, beside)
    except RunError as error:
        log.warning("weights.sidecar_damaged reason=%s", error)
        return None


def _paths(name: str) -> tuple[str, str]:
    if not _NAME.fullmatch(name):
        raise WeightsError("name of the weights", got=repr(name), want="letters, digits, _ and -")
    return f"{FOLDER}/{name}.safetensors", f"{FOLDER}/{name}.json"
