"""Did the cost model choose the quicker way, and was the difference more than noise? Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from deepflow.bench.paired import ratio_of

TIE = 1.05  # whatever is within this of the quicker way was chosen well
RIGHT, WRONG, UNCLEAR = "right", "wrong", "unclear"


@dataclass(frozen=True, slots=True)
class Case:
    """A prefix that has left the device; times are medians over the rounds."""

    tier: str
    tokens: int
    fetch_ms: float  # to the first token
    compute_ms: float
    choice: str  # of the cost model, in most rounds: fetch or compute
    # The chosen way's time over the other's, in 95 % of all such measurements within these.
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def verdict(self) -> str:
        """Unclear where the rounds do not tell which side of a tie it is on."""
        if self.ratio_high <= TIE:
            return RIGHT
        return WRONG if self.ratio_low > TIE else UNCLEAR

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def case_of(
    tier: str, tokens: int, fetched: Sequence[float], computed: Sequence[float], choice: str
) -> Case:
    """From seconds, measured in pairs."""
    ratio = ratio_of(fetched, computed)
    if choice == "compute":
        ratio = ratio.inverse
    fetch_ms, compute_ms = (round(median(it) * 1e3, 4) for it in (fetched, computed))
    return Case(tier, tokens, fetch_ms, compute_ms, choice, ratio.middle, ratio.low, ratio.high)


def summary(cases: Sequence[Case]) -> dict[str, Any]:
    verdicts = [it.verdict for it in cases]
    right, wrong = verdicts.count(RIGHT), verdicts.count(WRONG)
    reused = [it for it in cases if it.choice == "fetch"]
    return {
        # Of those whose difference is more than noise.
        "right_choices": right / (right + wrong) if right + wrong else None,
        "right": right,
        "wrong": wrong,
        "unclear": verdicts.count(UNCLEAR),
        # Of all, noise or not, by medians alone.
        "right_by_median": sum(it.ratio <= TIE for it in cases) / len(cases),
        "reused": len(reused),
        "reuse_was_quicker": sum(it.fetch_ms < it.compute_ms for it in reused),
    }
