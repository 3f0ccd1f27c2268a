"""What a check found, and how far two answers may lie apart."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

OK, DIFFERS, FAILED, OBSERVED = "ok", "DIFFERS", "FAILED", "observed"
# Relative to the reference: bf16 keeps eight bits, int8 linears lose about one part in a hundred.
BF16_ERROR_MAX = 0.02
INT8_ERROR_MAX = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    outcome: str
    detail: str
    seconds: float

    @property
    def is_bad(self) -> bool:
        return self.outcome in (DIFFERS, FAILED)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


# What a check comes to: an outcome, and words for people.
Found = tuple[str, str]


def judge(name: str, check: Callable[[], Found]) -> Verdict:
    """A check that raises is a verdict, too: the others still run."""
    began = time.monotonic()
    try:
        outcome, detail = check()
    except Exception as error:  # kernels raise whatever they like
        first_line = (str(error).strip().splitlines() or [""])[0]
        outcome, detail = FAILED, f"{type(error).__name__}: {first_line[:160]}"
    return Verdict(name, outcome, detail, round(time.monotonic() - began, 3))


def compare(got: torch.Tensor, wanted: torch.Tensor, error_max: float) -> Found:
    """By rows: the worst one's distance, relative to its length."""
    if got.shape != wanted.shape:
        return DIFFERS, f"shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
    if not got.isfinite().all():
        return DIFFERS, f"{int((~got.isfinite()).sum())} of {got.numel()} values are not finite"
    rows, reference = got.double().flatten(1), wanted.double().flatten(1)
    error = float(((rows - reference).norm(dim=1) / reference.norm(dim=1).clamp(min=1e-9)).max())
    return (OK if error <= error_max else DIFFERS), f"error {error:.2e} of {error_max:.0e}"
