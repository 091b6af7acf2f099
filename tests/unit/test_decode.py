"""Every format, mode and defect of an image file: the right pixels, or a DataError."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sports_ray.data.decode import decode, open_image
from sports_ray.errors import DataError

LIMIT = 10_000_000


def scene(width: int = 120, height: int = 80) -> Image.Image:
    """A picture with gradients, edges and some texture."""
    y, x = np.mgrid[:height, :width]
    red = 255 * x / width
    green = 255 * y / height
    blue = 127 + 90 * np.sin(x / 5) * np.cos(y / 7)
    pixels = np.stack([red, green, blue], axis=2)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (230, 40, 20)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, **options: int) -> np.ndarray:
    image = decode(data, max_pixels=LIMIT, **options)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_back_every_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encoded(scene(), kind, **options)), np.asarray(scene()))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_equals_pillow(mode: str, progressive: bool) -> None:
    data = encoded(scene().convert(mode), "JPEG", quality=90, progressive=progressive)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_gif_gives_its_first_frame() -> None:
    first, second = (Image.new("P", (8, 6), index) for index in (0, 1))
    for frame in (first, second):
        frame.putpalette([255, 0, 0, 0, 0, 255])
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert (pixels(data) == (255, 0, 0)).all()


def test_cmyk_jpeg_keeps_its_colours() -> None:
    data = encoded(Image.new("RGB", (32, 32), (200, 60, 30)).convert("CMYK"), "JPEG", quality=95)
    assert abs(pixels(data).astype(int) - (200, 60, 30)).max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 2))
    out = pixels(encoded(image.convert(mode), "PNG"))
    assert (out[:, :2] == 0).all() and (out[:, 2:] == 255).all()


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (2, 0, 4, 2))
    out = pixels(encoded(image, "PNG", transparency=0))
    assert (out[:, :2] == 255).all() and (out[:, 2:] == (200, 100, 50)).all()


def test_one_bit_and_sixteen_bit_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 257 * 50, 257 * 128, 65535]], np.uint16)
    assert pixels(encoded(Image.fromarray(ramp), "PNG"))[0, :, 0].tolist() == [0, 50, 128, 255]
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert pixels(encoded(bits, "PNG"))[0, :, 0].tolist() == [0, 255]


def test_sixteen_bit_colour_is_scaled() -> None:
    row = b"\0" + struct.pack(">6H", 65535, 257 * 100, 0, 257 * 7, 257 * 200, 65535)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")
    chunks = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    assert pixels(b"\x89PNG\r\n\x1a\n" + chunks).tolist() == [[[255, 100, 0], [7, 200, 255]]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(50, 34), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(pixels(data), np.asarray(expected))
    opened = open_image(data, max_pixels=LIMIT)
    assert (opened.width, opened.height) == expected.size


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("size", [(121, 80), (120, 83)])
@pytest.mark.parametrize("min_side, shrink", [(0, 1), (41, 1), (40, 2), (20, 4), (10, 8), (1, 8)])
def test_min_side_allows_a_reduced_jpeg(size: tuple[int, int], mode: str, min_side: int, shrink: int) -> None:
    image = scene(*size)
    out = pixels(encoded(image.convert(mode), "JPEG", quality=95), min_side=min_side)
    if min_side == 41 and size[1] == 83:
        shrink = 2
    assert out.shape == (-(-size[1] // shrink), -(-size[0] // shrink), 3)
    assert abs(out.astype(int) - np.asarray(image.reduce(shrink)).astype(int)).mean() < 6


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("min_side", [0, 20])
def test_a_jpeg_cut_off_anywhere_is_refused(min_side: int, progressive: bool) -> None:
    data = encoded(scene(), "JPEG", quality=90, progressive=progressive)
    for keep in [*range(0, len(data) - 2, 61), len(data) - 40, len(data) - 8]:
        with pytest.raises(DataError):
            decode(data[:keep], max_pixels=LIMIT, min_side=min_side)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF"])
def test_other_formats_cut_off_are_refused(kind: str) -> None:
    data = encoded(scene(), kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(DataError):
            decode(data[: int(len(data) * share)], max_pixels=LIMIT)


@pytest.mark.parametrize("data", [b"", b"hello, this is no image", b"<svg/>", b"\xff\xd8\xff", b"GIF89a"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        decode(data, max_pixels=LIMIT)
    assert caught.value.cure and str(caught.value.got)


def test_a_bomb_is_refused_from_its_header() -> None:
    for kind in ("PNG", "JPEG"):
        data = encoded(scene(200, 100), kind)[:700]  # the header alone: nothing is decoded
        with pytest.raises(DataError, match="200 x 100 = 20,000 pixels"):
            decode(data, max_pixels=19_999)


def test_a_format_that_is_not_listed_is_refused() -> None:
    with pytest.raises(DataError, match="JPEG, PNG, WebP, BMP or GIF"):
        decode(encoded(scene(), "TIFF"), max_pixels=LIMIT)
