"""Views: the plain one is what training validates with, the others are mirrored, corner and scaled cuts of the same image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import five_crop

from sports_ray.config import AugmentConfig, DataConfig, ImageSpec
from sports_ray.data.augment import evaluate
from sports_ray.data.decode import decode
from sports_ray.data.loader import stream
from sports_ray.data.manifest import Manifest
from sports_ray.data.order import Request
from sports_ray.errors import ConfigError
from sports_ray.predict.columns import mean_of, probabilities
from sports_ray.predict.compute import Files, decode_files
from sports_ray.predict.images import list_split
from sports_ray.predict.member import find_member
from sports_ray.predict.views import CHOICES, PLAIN, check_views, cut, view_batches, views_of
from tests.support.members import CLASSES, jpeg, listed, make_member, photographs


def spec(mode: str = "center", crop_pct: float = 0.95, size: int = 32) -> ImageSpec:
    return ImageSpec(
        train_size=size,
        eval_size=size,
        crop_pct=crop_pct,
        crop_mode=mode,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


@pytest.fixture
def split(tmp_path: Path) -> tuple[Path, list[str]]:
    folder = photographs(tmp_path / "set", 12, "val")
    return folder, [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.jpg"))]


def files_of(folder: Path, paths: list[str]) -> Files:
    images = list_split(str(folder), "val", CLASSES)
    assert images.column("path") == paths
    return Files([str(folder / path) for path in paths], images.digests(), [None] * len(paths))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.8, 1.0])
def test_plain_view_is_what_training_validates_with_byte_for_byte(
    split: tuple[Path, list[str]], mode: str, crop_pct: float
) -> None:
    folder, paths = split
    rows = [(path, CLASSES.index(path.split("/")[1]), "val") for path in paths]
    manifest = with_sizes(listed(folder, rows))
    given = spec(mode, crop_pct)
    with stream(manifest, DataConfig(cache_gb=0), AugmentConfig(), given, 0, [Request("val", -1, 0, 12)], 0) as batches:
        images = next(batches).images
    (plain,) = views_of("none", given)
    pixels, errors = decode_files(files_of(folder, paths), [plain.source], given, 10**8)
    assert errors == [None] * 12
    assert torch.equal(cut(plain, torch.from_numpy(pixels[plain.source])), images)


def with_sizes(manifest: Manifest) -> Manifest:
    """The loader refuses photographs whose size is not what was listed."""
    import pyarrow as pa
    from PIL import Image

    sizes = [Image.open(Path(manifest.root) / path).size for path in manifest.table.column("path").to_pylist()]
    table = manifest.table
    for place, name in enumerate(("width", "height")):
        column = pa.array([size[place] for size in sizes], pa.int32())
        table = table.set_column(table.column_names.index(name), name, column)
    return Manifest(manifest.root, manifest.classes, table)


@pytest.mark.parametrize("crop_pct", [0.8, 0.95])
def test_corners_are_torchvisions_five_crop_of_the_larger_square(crop_pct: float) -> None:
    given = spec(crop_pct=crop_pct)
    views = views_of("5crop", given)
    image = decode(jpeg(3, 61, 47), max_pixels=10**6)
    side = int(32 / min(crop_pct, 0.875))
    square = evaluate(image, spec(crop_pct=1.0), side)
    corners = five_crop(square, [32, 32])[:4]
    batches = {
        view.source: evaluate(image, spec(crop_pct=view.source.crop_pct), view.source.size)[None] for view in views
    }
    found = dict(zip((view.name for view in views), view_batches(views, batches), strict=True))
    for name, corner in zip(("top-left", "top-right", "bottom-left", "bottom-right"), corners, strict=True):
        assert torch.equal(found[name][0], corner), name
    assert torch.equal(found[PLAIN][0], evaluate(image, given, 32))


def test_flips_mirror_every_view_of_their_choice() -> None:
    ten, five, two = (views_of(choice, spec()) for choice in ("10crop", "5crop", "hflip"))
    assert ten[:5] == five and two[0] == five[0] and ten[5] == two[1]
    images = torch.arange(2 * 3 * 36 * 36).reshape(2, 3, 36, 36)
    for straight, mirrored in zip(ten[:5], ten[5:], strict=True):
        assert mirrored.name == f"{straight.name}-flip"
        assert torch.equal(cut(mirrored, images), torch.from_numpy(np.flip(cut(straight, images).numpy(), 3).copy()))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("average", ["probs", "logits"])
def test_an_invariant_model_is_unchanged_by_views(choice: str, average: str) -> None:
    """Mean colour and nothing else, on images of one colour: no view can change it."""
    given, weights = spec(), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    colours = torch.randint(0, 256, (7, 3, 1, 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    views = views_of(choice, given)
    batches = {view.source: colours.expand(7, 3, view.source.size, view.source.size) for view in views}
    logits = [(batch.double().mean((2, 3)).float() / 255 @ weights).numpy() for batch in view_batches(views, batches)]
    mean = mean_of([probabilities(one) for one in logits], average)
    np.testing.assert_allclose(mean, probabilities(logits[0]), rtol=1e-5)
    assert len(logits) == {"none": 1, "hflip": 2, "5crop": 5, "10crop": 10}.get(choice, 3)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("flip", "wanted none, hflip, 5crop, 10crop, scales=0.9,1.1"),
        ("scales=", "wanted none"),
        ("scales=big", "wanted none"),
        ("scales=0.9,0.9", "different scales from 0.25 to 4"),
        ("scales=9", "different scales from 0.25 to 4"),
        ("scales=1.0", "scale 1: 32 px as without it"),
    ],
)
def test_choices_that_are_none_are_refused(choice: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        views_of(choice, spec())


def test_scales_are_refused_where_the_input_size_is_fixed(tmp_path: Path) -> None:
    make_member(tmp_path, "vit", model="test_vit", size=160)
    make_member(tmp_path, "conv", model="test_convnext", size=64)
    conv, vit = (find_member(name, str(tmp_path)) for name in ("conv", "vit"))
    check_views(views_of("scales=0.8,1.1", conv.spec), conv)
    check_views(views_of("10crop", vit.spec), vit)
    with pytest.raises(
        ConfigError, match=r"--tta for vit; got images of 128 px; wanted 160 px, which test_vit is built for"
    ):
        check_views(views_of("scales=0.8,1.1", vit.spec), vit)
