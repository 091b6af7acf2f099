"""Photographs for the page: small, decoded and encoded anew (no byte of a file gets in), with the model's heat beside."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sports_ray.config import DataConfig
from sports_ray.data.decode import decode
from sports_ray.errors import DataError, SportsRayError, StorageError
from sports_ray.report.explain import Seer
from sports_ray.report.markup import Child, Html, data_uri, el, join
from sports_ray.report.read_evaluation import EvaluationRecord, Facts
from sports_ray.report.section import Section, folded
from sports_ray.report.words import percent, plural

log = logging.getLogger(__name__)

SIDE = 176
"""Longer side of a picture on the page, px."""
QUALITY = 80
WORST, PAIRS, EACH = 24, 10, 4
"""Mistakes, confused pairs, and photographs of each pair that are shown."""
OPEN_WORST, OPEN_PAIRS = 12, 4
"""Of these so many are unfolded."""
BATCH = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """Of one photograph; addresses that hold JPEGs."""

    plain: str = ""
    heat: str = ""
    error: str = ""


def overlay(view: Tensor, heat: Tensor) -> NDArray[np.uint8]:
    """The view (uint8 [3, S, S]) under its heat (float [S, S] in [0, 1]): uint8 [S, S, 3].

    The hotter, the less of the photograph is left, so that cold places stay as they are."""
    from matplotlib import colormaps

    colours = colormaps["turbo"](0.5 + 0.5 * heat.numpy())[..., :3] * 255
    cover = (heat.numpy() ** 0.8 * 0.65)[..., None]
    return (view.permute(1, 2, 0).numpy() * (1 - cover) + colours * cover).round().clip(0, 255).astype(np.uint8)


def pictures(
    wanted: Mapping[int, Path], read: Callable[[Path], bytes], seer: Seer | None, targets: Mapping[int, str]
) -> dict[int, Picture]:
    """A picture of each photograph by id, with the heat of class targets[id] where there is a model to ask."""
    found: dict[int, Picture] = {}
    views: dict[int, Tensor] = {}
    for key, path in wanted.items():
        try:
            data = read(path)
            if seer is None:
                found[key] = Picture(_jpeg(_small(decode(data, max_pixels=DataConfig().max_pixels, min_side=SIDE))))
            else:
                views[key] = seer.view(data)
        except (OSError, DataError, StorageError) as error:
            log.info("report: no picture of %s: %s", path, error)
            found[key] = Picture(error="the photograph cannot be read from here")
    if seer is not None:
        found |= _looked_at(seer, views, targets)
    return found


def _looked_at(seer: Seer, views: Mapping[int, Tensor], targets: Mapping[int, str]) -> dict[int, Picture]:
    keys, found = list(views), {}
    for start in range(0, len(keys), BATCH):
        part = keys[start : start + BATCH]
        chosen = [seer.classes.index(targets[key]) if targets[key] in seer.classes else 0 for key in part]
        heats: Iterable[Tensor | None]
        try:
            heats = seer.look(torch.stack([views[key] for key in part]), torch.tensor(chosen)).heat
        except SportsRayError as error:
            log.warning("report: no heat: %s", error)
            heats = [None] * len(part)
        for key, heat in zip(part, heats, strict=True):
            plain = views[key].permute(1, 2, 0).numpy()
            hot = "" if heat is None or targets[key] not in seer.classes else _jpeg(_resized(overlay(views[key], heat)))
            found[key] = Picture(_jpeg(_resized(plain)), hot)
    return found


def galleries(evaluation: EvaluationRecord, seer: Seer | None) -> Section | None:
    """The mistakes made with most confidence, and the pairs of classes most often taken for each other."""
    worst = _entries(evaluation.scores.get("worst"), "id")[:WORST]
    pairs = _entries(evaluation.scores.get("confused_pairs"), "ids")[:PAIRS]
    targets = {int(entry["id"]): str(entry.get("predicted")) for entry in worst}
    for pair in pairs:
        targets |= {int(one): str(pair.get("predicted")) for one in list(pair["ids"])[:EACH]}
    if not targets:
        return None
    paths = evaluation.paths(targets)
    seen = pictures(paths, evaluation.read, seer, targets)
    cards = [card(seen.get(int(one["id"])), paths.get(int(one["id"])), _worst_words(one)) for one in worst]
    kind = "gallery" if any(one.heat for one in seen.values()) else "gallery cold"
    parts: list[Child] = [_heat_note(seer)]
    if cards:
        shown, rest = cards[:OPEN_WORST], cards[OPEN_WORST:]
        parts += [el("h3", "Wrong with most confidence"), el("div", *shown, class_=kind)]
        parts.append(folded(f"{len(rest)} more", el("div", *rest, class_=kind)) if rest else None)
    if pairs:
        drawn = [_pair(pair, seen, paths, kind) for pair in pairs]
        parts += [el("h3", "Most often taken for each other"), *drawn[:OPEN_PAIRS]]
        parts.append(
            folded(f"{len(drawn[OPEN_PAIRS:])} more pairs", *drawn[OPEN_PAIRS:]) if drawn[OPEN_PAIRS:] else None
        )
    return Section("Mistakes", join(*parts))


def _entries(value: Any, key: str) -> list[Facts]:
    return [entry for entry in value or () if isinstance(entry, Mapping) and entry.get(key) is not None]


def _heat_note(seer: Seer | None) -> Html:
    if seer is None:
        text = "Without heat (Grad-CAM): `sports-ray report DIR --run RUN` lays that of a member over the photographs."
        return el("p", text, class_="note")
    return el(
        "p", "Left what ", el("b", seer.name), " sees, right where it finds the evidence for its wrong answer (Grad-CAM): ",
        "the redder, the more.", class_="note",
    )  # fmt: skip


def _worst_words(entry: Facts) -> Html:
    return join(
        el("b", entry.get("predicted")), el("span", f" {percent(entry.get('confidence'), 0)}", class_="bad"),
        el("br"), "in truth ", el("b", entry.get("true")),
    )  # fmt: skip


def _pair(pair: Facts, seen: Mapping[int, Picture], paths: Mapping[int, Path], kind: str) -> Html:
    ids: Sequence[int] = [int(one) for one in list(pair["ids"])[:EACH]]
    title = el("h4", pair.get("true"), el("span", " taken for "), pair.get("predicted"), el("small", _times(pair)))
    cards = (card(seen.get(one), paths.get(one), None) for one in ids)
    return el("div", title, el("div", *cards, class_=kind), class_="pair")


def _times(pair: Facts) -> str:
    return f" {plural(int(pair.get('count') or 0), 'image')}"


def card(picture: Picture | None, path: Path | None, words: Html | None) -> Html:
    name = str(path) if path is not None else "unknown photograph"
    short = "/".join(name.split("/")[-2:])
    if picture is None or not picture.plain:
        shown = el("div", picture.error if picture else "not in predictions.parquet", class_="missing")
    else:
        images = [el("img", src=picture.plain, alt=short, loading="lazy")]
        if picture.heat:
            images.append(el("img", src=picture.heat, alt=f"heat of {short}", loading="lazy"))
        shown = el("div", *images, class_="photos")
    return el("figure", shown, el("figcaption", words, el("small", short, title=name)), class_="photo")


def _small(pixels: Tensor) -> NDArray[np.uint8]:
    return _resized(pixels.permute(1, 2, 0).numpy())


def _resized(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "JPEG", quality=QUALITY)
    return data_uri(sink.getvalue(), "image/jpeg")
