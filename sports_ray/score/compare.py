"""Whether one predictor is better than another on the same images: paired, since most images are easy for both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DOMAIN = 0x73636F7265
"""Second word of the generator's key ("score"): resampling shares no stream with the training's."""


def compare(candidate: NDArray[np.bool_], best: NDArray[np.bool_]) -> dict[str, Any]:
    """Two predictors' correctness [n] -> {`difference` of accuracy, `interval` [lo, hi] of it at 95 %, `mcnemar_p`}."""
    gained, lost = int((candidate & ~best).sum()), int((best & ~candidate).sum())
    return {
        "difference": (gained - lost) / len(best),
        "interval": list(accuracy_interval(gained, lost, len(best))),
        "mcnemar_p": mcnemar(gained, lost),
    }


def mcnemar(gained: int, lost: int, mid: bool = True) -> float:
    """Two-sided p-value of `gained` against `lost` images, right for one predictor alone, if each were as likely.

    McNemar's conditional test; its mid-p form is the default, as the exact one is needlessly conservative (Fagerland,
    Lydersen and Laake 2013, BMC Med Res Methodol 13:91). 1 if gained == lost."""
    n, least = gained + lost, min(gained, lost)
    log_point = math.lgamma(n + 1) - math.lgamma(least + 1) - math.lgamma(n - least + 1) - n * math.log(2)
    below = np.arange(least, 0, -1)
    tail = math.exp(log_point) * (1.0 + float(np.cumprod(below / (n - below + 1)).sum()))
    return min(1.0, max(0.0, 2 * tail - (math.exp(log_point) if mid else 0.0)))


def accuracy_interval(gained: int, lost: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Paired bootstrap percentile interval of a difference in accuracy, (gained - lost) / images, both ends in [-1, 1].

    A resample of the images changes the difference by +1, -1 or 0 for each one drawn, so the distribution over all
    resamples is known: its characteristic function is a power, and a Fourier transform gives every probability. This is
    what `bootstrap` tends to with ever more resamples (Efron and Tibshirani 1993, ch. 13), without its noise."""
    size = 1 << (2 * images).bit_length()
    angle = 2 * np.pi * np.arange(size // 2 + 1) / size
    step = 1 - (gained + lost) / images + (gained * np.exp(-1j * angle) + lost * np.exp(1j * angle)) / images
    chance = np.roll(np.fft.irfft(step**images, size), images)[: 2 * images + 1]
    below = np.cumsum(np.maximum(chance, 0))
    ends = np.searchsorted(below / below[-1], [(1 - level) / 2, (1 + level) / 2]) - images
    return float(ends[0] / images), float(ends[1] / images)


def bootstrap(
    values: NDArray[np.float64], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean of values [n], n < 2^32, such as differences of two predictors' losses.

    Resample r draws from the Philox stream (seed, r), by raw words alone: the same interval on any machine."""
    means = np.array([values[places].mean() for places in resampled(len(values), seed, resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(n: int, seed: int, resamples: int) -> Iterator[NDArray[np.uint64]]:
    """Each time n places in [0, n), drawn with replacement: the upper half of each word times n (Lemire 2019, without
    rejection)."""
    words = np.random.Philox(key=np.array([seed & ((1 << 64) - 1), _DOMAIN], dtype=np.uint64))
    start = words.state
    for number in range(resamples):
        start["state"]["counter"][:] = (0, number, 0, 0)
        words.state = start
        yield ((words.random_raw(n) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
