"""Is a noisy series still falling? Theil-Sen's slope with its rank confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A robust slope per observation, with the interval it lies in."""

    slope: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def theil_sen(values: Sequence[float], *, z: float = 1.645) -> Trend:
    """The median of the slopes between all pairs, and the interval that Kendall's statistic gives for it.

    Theil 1950; Sen 1968, "Estimates of the Regression Coefficient Based on Kendall's Tau". One outlier in four moves
    the slope little, where least squares would follow it.

    Args:
        values: at least two equidistant observations.
        z: quantile of the normal distribution on either side; 1.645 leaves 5% above and 5% below.

    >>> theil_sen([5.0, 4.0, 3.0, 2.0])
    Trend(slope=-1.0, low=-1.0, high=-1.0)
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"a trend needs at least two values, found {count}")
    later, earlier = np.tril_indices(count, -1)
    series = np.asarray(values, dtype=np.float64)
    slopes = np.sort((series[later] - series[earlier]) / (later - earlier))
    half = z * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(round((len(slopes) - half) / 2) - 1, 0)
    high = min(round((len(slopes) + half) / 2), len(slopes) - 1)
    return Trend(slope=float(np.median(slopes)), low=float(slopes[low]), high=float(slopes[high]))
