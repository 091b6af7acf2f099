"""An export: converted beside its place, checked, and only then put in place. What fails leaves nothing."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sports_ray.errors import ConfigError, ExportError, RunError, SportsRayError, WeightsError
from sports_ray.export.check import Agreement, compare, find_images, originals
from sports_ray.export.description import describe, to_json
from sports_ray.export.formats import Converter, Format
from sports_ray.predict.member import Member, load_model
from sports_ray.store import weights
from sports_ray.store.commit import read_commit

PARTS = {"ema": "ema", "raw": "model"}
"""What --weights calls the averaged weights and the trained ones, and what checkpoints call them."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    size: int
    """Bytes, of all files where it is a folder."""
    about: Mapping[str, Any]
    agreement: Agreement


def check_output(output: Path, format: Format) -> None:
    """ConfigError where the file could not be put there, before work is done in vain."""
    if ":/" in str(output):
        raise ConfigError(
            "--output", got=output, want="a path on this machine", cure="copy the file there when it is done"
        )
    folder = output.parent
    if not folder.is_dir():
        raise ConfigError("--output", got=output, want="a folder that exists", cure=f"mkdir -p {folder}")
    if format.suffix and output.is_dir():
        raise ConfigError(
            "--output", got=f"{output}, a folder", want=f"the name of a file, such as model{format.suffix}"
        )
    if not format.suffix and output.exists() and not (output / "saved_model.pb").is_file():
        raise ConfigError("--output", got=f"{output}, which is there", want="a new folder, or an earlier SavedModel")


def export(
    member: Member,
    converter: Converter,
    output: Path,
    *,
    dynamic: bool = False,
    images: int = 32,
    part: str = "",
    root: str = "",
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Writes a member's weights to `output` in the converter's format, once they agree with the original on `images` images.

    `part`: ema, raw or empty: as published. `root`: where the photographs lie now. `note` is told what is being done.
    Raises ExportError where the model cannot be converted, or the file does not agree; then nothing is left."""
    model, about = _original(member, part, dynamic)
    note("checking images")
    shown = find_images(member, images, root)
    expected = originals(model, shown, member)
    note("converting")
    with _beside(output) as temporary, _quiet():
        try:
            converter.convert(
                model.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
                member.spec.eval_size,
                dynamic,
                to_json(about),
                temporary,
            )
            note("checking the file")
            run, said = converter.load(temporary)
            agreement = compare(run, said, about, shown, expected, dynamic)
        except (SportsRayError, MemoryError):
            raise
        except Exception as error:  # converters fail in their own ways, on operators that they do not know
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise ExportError(
                f"{member.model} cannot be exported so",
                got=f"{type(error).__name__}: {reason}",
                cure="another --format",
            ) from error
        size = sum(path.stat().st_size for path in _files(temporary))
        _put(temporary, output)
    return Exported(output, size, about, agreement)


def _original(member: Member, part: str, dynamic: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The model that is exported, in evaluation mode, and what its file will say of itself."""
    sidecar = weights.describe(member.storage(), member.kind)
    if sidecar is None:
        raise WeightsError(f"weights of {member.name}", got="others than a moment ago", cure="the same command again")
    published = str(sidecar.get("weights", "model"))
    wanted = PARTS.get(part, published)
    if wanted == "ema" and published != "ema":
        raise ConfigError(
            "--weights ema", got=f"{member.name}, trained without", want="a run that averages", cure="leave it out"
        )
    model = load_model(member, torch.device("cpu"))
    about = describe(member, sidecar, wanted, dynamic)
    if wanted != published:
        model.load_state_dict(_of_checkpoint(member, int(sidecar["step"]), wanted))
        # What was published of the averaged weights is not true of these.
        about["weights"]["sha256"] = ""
        about["scores"] = {name: value for name, value in about["scores"].items() if not name.startswith("ema_")}
        about.pop("thresholds", None)
    return model, about


def _of_checkpoint(member: Member, step: int, part: str) -> dict[str, torch.Tensor]:
    try:
        return read_commit(member.storage(), step).load(part)
    except RunError as error:
        what = f"--weights raw of {member.name}"
        want = f"the checkpoint of step {step}, which holds them"
        raise WeightsError(what, got=error.got, want=want, cure="--weights ema, which are published") from error


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A path in a new folder beside `output`, which vanishes with all that is left in it."""
    folder = tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent)
    try:
        yield Path(folder) / output.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Converters print what they do, and warn of what PyTorch will change one day: not on stdout, and not at all."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _put(temporary: Path, output: Path) -> None:
    for path in _files(temporary):
        _sync(path)
    if temporary.is_dir() and output.exists():
        os.rename(output, temporary.parent / "old")
    os.replace(temporary, output)
    _sync(output.parent)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [found for found in sorted(path.rglob("*")) if found.is_file()]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
