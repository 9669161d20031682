"""All traps, tried one after the other."""

from __future__ import annotations

from t5refine_peft.traps import numbers, tokens, training, weights
from t5refine_peft.traps.finding import Attempt, Finding, Status

ATTEMPTS: dict[str, Attempt] = {**weights.ATTEMPTS, **numbers.ATTEMPTS, **tokens.ATTEMPTS, **training.ATTEMPTS}


def try_traps() -> list[Finding]:
    """Try all; one that ends in an error of its own is broken, with that error."""
    findings = []
    for name, attempt in ATTEMPTS.items():
        status: Status
        try:
            status, detail = attempt()
        except Exception as error:  # whatever a library's new version raises is what is to be told
            status, detail = "broken", f"{type(error).__name__}: {error}"
        findings.append(Finding(trap=name, status=status, detail=detail))
    return findings
