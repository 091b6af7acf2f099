"""Minimum of a smooth convex function in a box, for the few parameters of calibration and merging."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Objective = Callable[[Vector], tuple[float, Vector, NDArray[np.float64]]]
"""x [m] -> value, gradient [m], Hessian [m, m]."""

_ARMIJO = 1e-4
_HALVINGS = 30


def minimise(
    objective: Objective, start: Vector, low: float, high: float, steps: int = 100, tolerance: float = 1e-9
) -> Vector:
    """Projected Newton steps (Bertsekas 1982), from `start` [m], until the gradient inside the box is below `tolerance`.

    Directions in which the function is flat are not moved along: of equal members, none is preferred."""
    x = np.clip(start, low, high)
    value, gradient, hessian = objective(x)
    for _ in range(steps):
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        if not free.any() or np.abs(gradient[free]).max() < tolerance:
            break
        newton, steepest = np.zeros_like(x), np.where(free, -gradient, 0.0)
        newton[free] = np.linalg.lstsq(hessian[np.ix_(free, free)], -gradient[free], rcond=1e-10)[0]
        for direction in (newton, steepest):
            found = _search(objective, x, value, gradient, direction, low, high)
            if found is not None:
                break
        else:
            break  # no step is an improvement in floating point: this is the minimum
        x, value, gradient, hessian = found
    return x


def _search(
    objective: Objective, x: Vector, value: float, gradient: Vector, direction: Vector, low: float, high: float
) -> tuple[Vector, float, Vector, NDArray[np.float64]] | None:
    """The longest of the steps 1, 1/2, 1/4, ... that lowers the value enough (Armijo's rule); None if there is none."""
    for halving in range(_HALVINGS):
        trial = np.clip(x + direction * 0.5**halving, low, high)
        expected = float(gradient @ (trial - x))
        if expected >= 0:
            continue
        found = objective(trial)
        if found[0] <= value + _ARMIJO * expected:
            return trial, *found
    return None
