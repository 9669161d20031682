from __future__ import annotations

from dataclasses import replace

import pytest

from t5refine_peft import Quantization, RefineError, TrainingConfig, plan_memory, recipe
from t5refine_peft.training.planning import plan_training

BASES = [
    *(f"google/mt5-{size}" for size in ("small", "base", "large", "xl")),
    "google/umt5-base",
    "google/flan-t5-base",
]
FROM_LEAST_LOSSY = [Quantization.none(), Quantization.int8(), Quantization.nf4(), Quantization.nf4(head="nf4")]


def fits(base: str, budget_bytes: int, quantization: Quantization, passages: int) -> bool:
    lengths = {"input_tokens": 256, "label_tokens": 128}
    return plan_memory(base, budget_bytes, quantization=quantization, batch=passages, **lengths).fits


def check(base: str, budget_bytes: int, *, wanted: int) -> TrainingConfig:
    """See that the recipe fits, that no less lossy one holds what is wanted, and that no larger micro-batch fits."""
    found = recipe(base, budget_bytes)
    at = FROM_LEAST_LOSSY.index(found.quantization)
    assert fits(base, budget_bytes, found.quantization, found.micro_batch)
    assert not any(fits(base, budget_bytes, scheme, wanted) for scheme in FROM_LEAST_LOSSY[:at])
    assert found.micro_batch == 16 or not fits(base, budget_bytes, found.quantization, 2 * found.micro_batch)
    assert (found.batch, found.memory_bytes) == (16, budget_bytes)
    assert replace(found, quantization=None, micro_batch=None, memory_bytes=None) == TrainingConfig()
    return found


@pytest.mark.parametrize("size", [6, 8, 12, 24])
@pytest.mark.parametrize("base", BASES)
def test_each_recipe_fits_and_is_the_least_lossy_one(base: str, size: int):
    found = check(base, size * 10**9, wanted=4)
    assert found.micro_batch >= 4
    plan = plan_training(base, replace(found, device="cuda", precision="bfloat16"))
    assert plan.fits
    assert plan.quantization == found.quantization


@pytest.mark.parametrize("size", [2.7, 3, 3.5, 4, 5])
def test_in_less_memory_it_quantises_before_it_goes_below_four_passages(size: float):
    found = check("google/mt5-xl", int(size * 10**9), wanted=4)
    assert found.micro_batch >= 4 or found.quantization == FROM_LEAST_LOSSY[-1]


def test_where_four_passages_never_fit_the_leanest_scheme_takes_fewer():
    sizes = range(25_000 * 10**5, 30_000 * 10**5, 10**7)
    found = recipe(
        "google/mt5-xl", next(size for size in sizes if fits("google/mt5-xl", size, FROM_LEAST_LOSSY[-1], 1))
    )
    assert found.quantization == FROM_LEAST_LOSSY[-1]
    assert found.micro_batch in (1, 2)


def test_what_is_given_stays_and_what_never_fits_is_refused():
    given = TrainingConfig(quantization=Quantization.nf4(), batch=6, epochs=2)
    found = recipe("google/mt5-base", 6 * 10**9, config=given)
    assert (found.quantization, found.batch, found.micro_batch, found.epochs) == (Quantization.nf4(), 6, 6, 2)
    with pytest.raises(RefineError, match=r"google/mt5-xl needs .* take a smaller base; see t5refine plan --base goog"):
        recipe("google/mt5-xl", 10**9)
