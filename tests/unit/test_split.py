"""Carving a validation split, and what counts as nearly the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from sports_ray.data.near import FLAT, OTHER_CLASS_BITS, SAME_CLASS_BITS, components, near_pairs, phash, trusted_bits
from sports_ray.data.split import carve, duplicate_groups, uncarved


def made(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n images with random hashes; some stand twice, some are near another."""
    rng = np.random.default_rng(seed)
    digests = np.array([hashlib.sha256(f"{seed}/{k}".encode()).hexdigest() for k in range(n)])
    hashes = rng.integers(1, 2**64, n, dtype=np.uint64)
    labels = rng.integers(0, classes, n)
    copies = rng.choice(n, n // 5, replace=False)
    originals = rng.integers(0, n, len(copies))
    labels[copies] = labels[originals]
    hashes[copies] = hashes[originals] ^ np.uint64(0b1011)
    exact = copies[::2]
    digests[exact], hashes[exact] = digests[originals[::2]], hashes[originals[::2]]
    return digests, hashes, labels


def brute(
    hashes: np.ndarray, labels: np.ndarray, within: int = SAME_CLASS_BITS, across: int = OTHER_CLASS_BITS
) -> np.ndarray:
    """Components by comparing everything with everything."""
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    same = (labels[:, None] == labels[None]) & (labels[:, None] >= 0)
    near = (distance <= np.where(same, within, across)) & (hashes != FLAT)[:, None] & (hashes != FLAT)[None]
    return components(len(hashes), np.argwhere(near))


@pytest.mark.parametrize("seed", range(5))
def test_no_duplicate_or_near_duplicate_crosses_the_carve(seed: int) -> None:
    digests, hashes, labels = made(600, 7, seed)
    chosen = carve(digests, hashes, labels, 0.2)
    group = duplicate_groups(digests, hashes, labels)
    assert not set(group[chosen]) & set(group[~chosen])
    assert not set(digests[chosen]) & set(digests[~chosen])
    distance = np.bitwise_count(hashes[chosen][:, None] ^ hashes[~chosen][None])
    assert distance.min() > OTHER_CLASS_BITS


@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.5])
def test_every_class_gives_its_share_within_a_group(fraction: float) -> None:
    digests, hashes, labels = made(2000, 10)
    chosen = carve(digests, hashes, labels, fraction)
    for label in range(10):
        here = labels == label
        assert abs(chosen[here].sum() - max(1, fraction * here.sum())) <= 4


def test_carve_does_not_look_at_the_order_of_rows() -> None:
    digests, hashes, labels = made(500, 5)
    chosen = carve(digests, hashes, labels, 0.15)
    order = np.random.default_rng(1).permutation(500)
    again = carve(digests[order], hashes[order], labels[order], 0.15)
    assert set(digests[chosen]) == set(digests[order][again])
    assert chosen.sum() == again.sum()


def test_carve_does_not_look_at_the_numbers_of_the_classes() -> None:
    digests, hashes, labels = made(500, 5)
    assert (carve(digests, hashes, labels, 0.15) == carve(digests, hashes, 4 - labels, 0.15)).all()


def test_one_more_image_moves_almost_nothing() -> None:
    digests, hashes, labels = made(800, 4)
    less = carve(digests[1:], hashes[1:], labels[1:], 0.15)
    assert (carve(digests, hashes, labels, 0.15)[1:] != less).sum() <= 4


def test_two_groups_give_one_image_and_a_single_group_none() -> None:
    digests = np.array(["aa", "bb", "cc", "cc", "dd"])
    hashes = np.array([1 << 40, 0xFFFFFFFF, 0x0F0F0F0F0F0F, 0x0F0F0F0F0F0F, 0x0F0F0F0F0F0F ^ 1], dtype=np.uint64)
    labels = np.array([0, 0, 1, 1, 1])
    chosen = carve(digests, hashes, labels, 0.01)
    assert chosen[:2].sum() == 1
    assert not chosen[2:].any()
    assert uncarved(labels, chosen).tolist() == [1]


def test_a_class_is_never_emptied_even_where_groups_are_large() -> None:
    digests = np.array(["aa"] * 9 + ["bb"])
    hashes = np.array([1 << 50] * 9 + [0xFFFF], dtype=np.uint64)
    chosen = carve(digests, hashes, np.zeros(10, np.int64), 0.5)
    assert chosen.tolist() == [False] * 9 + [True]


def test_no_images_are_carved_into_none() -> None:
    assert carve([], np.empty(0, np.uint64), np.empty(0, np.int64), 0.15).shape == (0,)


def near_and_not_near(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes, of which every other one lies at some distance about the limits from the one before, and labels."""
    rng = np.random.default_rng(n)
    hashes = rng.integers(1, 2**64, n, dtype=np.uint64)
    labels = rng.integers(-1, 3, n)
    for k in range(0, n // 2, 2):
        flipped = rng.choice(64, k % 16, replace=False)
        hashes[k + 1] = hashes[k] ^ np.bitwise_or.reduce(
            np.uint64(1) << flipped.astype(np.uint64), initial=np.uint64(0)
        )
    hashes[-3:] = FLAT
    return hashes, labels


@pytest.mark.parametrize("n", [300, 3000])
def test_near_pairs_join_what_a_comparison_of_all_with_all_joins(n: int) -> None:
    hashes, labels = near_and_not_near(n)
    assert (components(n, near_pairs(hashes, labels)) == brute(hashes, labels)).all()


@pytest.mark.parametrize(("chance", "across"), [(1000.0, 5), (90.0, 2), (40.0, 1), (10.0, 0)])
def test_many_more_images_have_to_be_nearer(monkeypatch: pytest.MonkeyPatch, chance: float, across: int) -> None:
    """As if chance made pairs more often."""
    monkeypatch.setattr("sports_ray.data.near._CHANCE_PAIRS", chance)
    hashes, _ = near_and_not_near(5000)
    labels = np.full(5000, -1)
    assert trusted_bits(4997, OTHER_CLASS_BITS) == across
    assert (components(5000, near_pairs(hashes, labels)) == brute(hashes, labels, across=across)).all()


def test_as_many_bits_are_trusted_as_chance_leaves() -> None:
    assert trusted_bits(2, 10) == 10 and trusted_bits(70_000, 10) == 10 and trusted_bits(80_000, 10) == 9
    assert [trusted_bits(count, 6) for count in (1_000_000, 10_000_000, 100_000_000)] == [6, 3, 1]


def test_many_equal_images_give_few_pairs() -> None:
    assert len(near_pairs(np.full(50_000, 12345, np.uint64), np.zeros(50_000, np.int64))) == 49_999


def test_many_images_near_to_each_other_give_few_pairs_that_join_them_all() -> None:
    """As the frames of a camera that stands still: all pairs would be two million, several times over."""
    rng = np.random.default_rng(0)
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (2200, 3), dtype=np.uint64), axis=1)
    hashes, labels = np.uint64(0x123456789ABCDEF) ^ flips, np.zeros(2200, np.int64)
    pairs = near_pairs(hashes, labels)
    assert (components(2200, pairs) == 0).all() and len(pairs) < 30 * 2200


def test_components_follow_long_chains() -> None:
    chain = np.stack([np.arange(999), np.arange(1, 1000)], axis=1)
    assert (components(1000, chain[::-1]) == 0).all()
    assert components(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_phash_survives_resizing_light_and_turning_grey_but_not_another_picture() -> None:
    rng = np.random.default_rng(0)
    image, other = (
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((200, 150), Image.Resampling.BICUBIC)
        for _ in range(2)
    )

    def code(picture: Image.Image) -> int:
        return phash(np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy())

    for same in (image.resize((97, 60)), image.point(lambda value: int(value * 0.7 + 20)), image.convert("L")):
        assert (code(image) ^ code(same)).bit_count() <= OTHER_CLASS_BITS
    assert (code(image) ^ code(other)).bit_count() > SAME_CLASS_BITS
    assert code(Image.new("RGB", (50, 50), "green")) == FLAT
