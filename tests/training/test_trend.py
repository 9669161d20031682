from __future__ import annotations

import pytest

from t5refine_peft.training.trend import theil_sen


@pytest.mark.parametrize(
    ("values", "expected"),
    [  # scipy.stats.theilslopes(values, alpha=0.9) of SciPy 1.14
        ([3.1, 2.9, 3.05, 2.7, 2.72, 2.5, 2.65, 2.4], (-0.1, -0.1333333333, -0.05)),
        ([1.0, 1.02, 0.97, 1.01, 0.99, 1.005], (-0.0025, -0.015, 0.015)),
    ],
)
def test_slope_and_interval_are_those_of_scipy(values, expected):
    trend = theil_sen(values)
    assert (trend.slope, trend.low, trend.high) == pytest.approx(expected, abs=1e-9)


def test_one_outlier_does_not_turn_the_slope():
    assert theil_sen([5.0, 4.9, 4.8, 99.0, 4.6, 4.5, 4.4, 4.3]).slope == pytest.approx(-0.1, abs=0.02)


def test_one_value_has_no_trend():
    with pytest.raises(ValueError, match="at least two values, found 1"):
        theil_sen([1.0])
