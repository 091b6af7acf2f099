"""Where weights come from: timm's hub or a file, read without executing anything in it."""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sports_ray.errors import WeightsError
from sports_ray.model.build import pretrained_cfg
from sports_ray.model.eager_timm import PretrainedCfg, check_cached_file, download_cached_file, hf_split

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# In order of preference; timm and torch's tutorials write these. EMA first, as timm's own loader does.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
PROBE_SECONDS = 5.0
WITHOUT_HUB = "`--weights none` starts from scratch, `--weights FILE` takes a file you have"

T = TypeVar("T")


def sidecar_path(weights: Path) -> Path:
    """The JSON file that describes a weights file: best.safetensors -> best.json."""
    return weights.with_suffix(".json")


def read_sidecar(weights: Path) -> dict[str, Any]:
    """What stands in the sidecar, such as `classes` and `weights_sha256`; empty if there is none."""
    path = sidecar_path(weights)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(
            "sidecar of weights", got=f"{path}: {error}", want="JSON", cure="mend or remove it"
        ) from error
    return content if isinstance(content, dict) else {}


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file or of a PyTorch file, on the CPU.

    PyTorch files are unpickled with `weights_only`, which refuses code; dictionaries around the weights and prefixes of
    wrappers (`module.`, `_orig_mod.`, Lightning's `model.`) are taken off. Raises WeightsError.
    """
    if not path.is_file():
        raise WeightsError("weights file", got=path, want="an existing .safetensors or .pth file")
    if path.suffix != ".safetensors" and path.suffix not in PICKLED:
        raise WeightsError("weights file", got=path, want=".safetensors or one of " + " ".join(PICKLED))
    try:
        content = _read(path)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            "weights file cannot be read safely",
            got=f"{path}: {reason}",
            want="tensors alone",
            cure="save model.state_dict() as .safetensors where you trust the file",
        ) from error
    tensors = _without_prefixes({key: value for key, value in _unwrapped(content).items() if isinstance(value, Tensor)})
    if not tensors:
        raise WeightsError("weights file", got=f"{path} without tensors", want="a state dict")
    return tensors


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # timm's checkpoints hold their arguments as a Namespace, which is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: Any) -> dict[str, Any]:
    while isinstance(content, dict):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            return content
        content = inner
    return {}


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # `model.` only where all names have it: some architectures may have a part of that name.
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if tensors and all(name.startswith("model.") for name in tensors):
        tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    return tensors


def fetch_pretrained(name: str) -> tuple[str, Path]:
    """(origin, local file) of a timm model's pretrained weights, from the cache or else downloaded.

    Raises WeightsError when there are none, and within some seconds when they cannot be reached.
    """
    cfg = pretrained_cfg(name)
    what = f"pretrained weights of {name}"
    # timm's own way to load (`custom_load`, of .npz files) is for its old addresses; the hub has these as safetensors.
    if not cfg.has_weights or (cfg.custom_load and not cfg.hf_hub_id):
        raise WeightsError(what, got="none that can be checked", want="a model with weights", cure=WITHOUT_HUB)
    origin = cfg.hf_hub_id or (cfg.url if isinstance(cfg.url, str) else "")
    try:
        return origin, Path(_from_hub(origin, cfg) if cfg.hf_hub_id else _from_url(origin))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(what, got=f"{origin}: {reason}", want="access to the hub", cure=WITHOUT_HUB) from error


def _from_hub(hub_id: str, cfg: PretrainedCfg) -> str:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    repo, revision = hf_split(hub_id)
    files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        cached = try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(cached, str):
            return cached
    for file in files:
        url = hf_hub_url(repo, file, revision=revision)
        try:
            # The download itself retries for most of a minute before it says that there is no network.
            _within(PROBE_SECONDS, lambda url=url: get_hf_file_metadata(url, timeout=PROBE_SECONDS))  # type: ignore[misc]
        except RemoteEntryNotFoundError:
            continue
        return hf_hub_download(repo, file, revision=revision)
    raise FileNotFoundError(f"no {' or '.join(files)}")


def _from_url(url: str) -> str:
    if not check_cached_file(url, check_hash=False):
        request = urllib.request.Request(url, method="HEAD")
        _within(PROBE_SECONDS, lambda: urllib.request.urlopen(request, timeout=PROBE_SECONDS).close())
    return download_cached_file(url, check_hash=True)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """`call()`, or TimeoutError: a name server that does not answer heeds no socket's timeout."""
    outcome: list[T] = []
    failure: list[Exception] = []

    def target() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]
