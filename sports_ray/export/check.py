"""The proof of an exported file: real images through it and through the original, which have to agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sports_ray.errors import ExportError
from sports_ray.predict.compute import Files, decode_files
from sports_ray.predict.member import Member, manifest_of
from sports_ray.predict.views import views_of

if TYPE_CHECKING:
    from sports_ray.export.formats import Run

TOLERANCE = 1e-4
"""Of logits: a share of the largest one, in size, of all images; of probabilities: as they are."""
BATCH = 8
"""Images of the largest batch that is tried."""


@dataclass(frozen=True, slots=True)
class Images:
    """What is compared on."""

    pixels: NDArray[np.uint8]
    """[N, 3, S, S], as they are before normalisation."""
    source: str
    """Where they are from, in words."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a file is from its original."""

    images: int
    source: str
    batches: tuple[int, ...]
    """Sizes that were tried."""
    logits: float
    """Largest difference, as a share of the largest logit."""
    probabilities: float
    """Largest difference."""
    same_class: int
    """Images of which both find the same class the likeliest."""


def find_images(member: Member, count: int, root: str = "") -> Images:
    """`count` images in the member's size: of its run's validation split, spread over it; drawn ones for what is lacking.

    `root`: where the photographs lie now, if not where they lay."""
    pixels = _photographs(member, count, root)
    found = len(pixels)
    if found < count:
        pixels = np.concatenate([pixels, _drawn(count - found, member.spec.eval_size)])
    words = [f"{found} validation photographs"] * bool(found) + [f"{count - found} drawn images"] * (found < count)
    return Images(pixels, " and ".join(words))


def originals(model: nn.Module, images: Images, member: Member) -> NDArray[np.float32]:
    """Logits of the model as it predicts, in float32: [N, classes]."""
    mean, std = (torch.tensor(values).mul(255.0).view(1, 3, 1, 1) for values in (member.spec.mean, member.spec.std))
    with torch.inference_mode():
        parts = [
            model((torch.from_numpy(images.pixels[start : start + BATCH]).float() - mean) / std).float()
            for start in range(0, len(images.pixels), BATCH)
        ]
    return torch.cat(parts).numpy()


def compare(
    run: Run, said: str, about: dict[str, Any], images: Images, expected: NDArray[np.float32], dynamic: bool
) -> Agreement:
    """Runs a file on the images, normalised as it says of itself, in batches of one and, if `dynamic`, of several.

    `said`: the description that stands in the file. Raises ExportError where it is not `about`, or the logits are not
    `expected`."""
    if _parsed(said) != about:
        raise ExportError(
            "the exported file describes itself wrongly", got=said[:80] or "nothing", want="what was written"
        )
    how = about["preprocessing"]
    mean, std = (np.array(how[name], np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    found, sizes = [], []
    for start, stop in _batches(len(images.pixels), dynamic):
        part = images.pixels[start:stop].astype(np.float32) / how["scale"]
        found.append(np.asarray(run(np.ascontiguousarray((part - mean) / std, np.float32))))
        sizes.append(stop - start)
    logits = np.concatenate(found)
    if logits.shape != expected.shape:
        raise ExportError("the exported file", got=f"logits {logits.shape}", want=f"{expected.shape}")
    with np.errstate(invalid="ignore"):
        differences = np.abs(logits - expected)
        probabilities = np.abs(_probabilities(logits, about) - _probabilities(expected, about))
    agreement = Agreement(
        images=len(expected),
        source=images.source,
        batches=tuple(sorted(set(sizes))),
        logits=float(differences.max()) / max(float(np.abs(expected).max()), 1e-30),
        probabilities=float(probabilities.max()),
        same_class=int((logits.argmax(1) == expected.argmax(1)).sum()),
    )
    # Turned round: a logit that is no number agrees with nothing.
    if not (agreement.logits <= TOLERANCE and agreement.probabilities <= TOLERANCE):
        raise ExportError(
            "the exported file does not compute what the original does",
            got=f"logits that differ by {agreement.logits:.2g} of the largest, probabilities by {agreement.probabilities:.2g}",
            want=f"at most {TOLERANCE:g} on {agreement.source}",
            cure="another --format; nothing was written",
        )
    return agreement


def _batches(count: int, dynamic: bool) -> Iterator[tuple[int, int]]:
    """Spans [start, stop): one by one, or of 1, 2, 5 and then BATCH images."""
    start, wanted = 0, iter([1, 2, 5])
    while start < count:
        size = next(wanted, BATCH) if dynamic else 1
        yield start, min(count, start + size)
        start += size


def _parsed(said: str) -> Any:
    try:
        return json.loads(said)
    except ValueError:
        return None


def _probabilities(logits: NDArray[np.float32], about: dict[str, Any]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    if about["activation"] == "sigmoid":
        return 1 / (1 + np.exp(-values))
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)  # type: ignore[no-any-return]


def _photographs(member: Member, count: int, root: str) -> NDArray[np.uint8]:
    """Up to `count` of the validation split that are at hand and unchanged, [n, 3, S, S]."""
    view = views_of("none", member.spec)[0]
    manifest = manifest_of(member)
    if manifest is None:
        return np.zeros((0, 3, view.size, view.size), np.uint8)
    rows = manifest.rows("val")
    spread = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    paths, digests = (rows.column(name).take(spread).to_pylist() for name in ("path", "sha256"))
    files = Files(paths, digests, [None] * len(paths), root or manifest.root)
    pixels, errors = decode_files(files, [view.source], member.spec, member.max_pixels)
    return pixels[view.source][[error is None for error in errors]]


def _drawn(count: int, size: int) -> NDArray[np.uint8]:
    """Soft blobs of colour, no two alike: [count, 3, size, size]."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 3, 7, 7), dtype=np.uint8)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse).float(), size=(size, size), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8).numpy()
