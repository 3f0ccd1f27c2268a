"""How long a step will probably take, and how long it takes at least.

The first is for the step clock, by which a hung engine is seen; the second for whoever must be
done before the step is.
"""

_WEIGHT = 0.2  # of the newest step
_LEAST_WEIGHT = 0.02  # likewise, where it took longer than the least


class StepTimePredictor:
    """Averages by size class: steps of 1, 2-3, 4-7, 8-15, ... tokens."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._least: dict[int, float] = {}

    def predict(self, num_tokens: int) -> float:
        """0 before anything was seen; between classes, the nearest one scaled by size if larger."""
        return _nearest(self._seconds, num_tokens)

    def least(self, num_tokens: int) -> float:
        """Likewise, of the quickest steps lately: one that was held up says nothing about it."""
        return _nearest(self._least, num_tokens)

    def observe(self, num_tokens: int, seconds: float) -> None:
        size = num_tokens.bit_length()
        known = self._seconds.get(size, seconds)
        self._seconds[size] = known + _WEIGHT * (seconds - known)
        least = min(self._least.get(size, seconds), seconds)
        self._least[size] = least + _LEAST_WEIGHT * (seconds - least)


def _nearest(seconds: dict[int, float], num_tokens: int) -> float:
    if not seconds:
        return 0.0
    size = num_tokens.bit_length()
    nearest = min(seconds, key=lambda known: abs(known - size))
    return seconds[nearest] * 2.0 ** max(0, size - nearest)
