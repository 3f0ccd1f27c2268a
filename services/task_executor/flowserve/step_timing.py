"""How long a step will probably take: for the step clock, by which a hung engine is seen."""

_WEIGHT = 0.2  # of the newest step


class StepTimePredictor:
    """Averages by size class: steps of 1, 2-3, 4-7, 8-15, ... tokens."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def predict(self, num_tokens: int) -> float:
        """0 before anything was seen; between classes, the nearest one scaled by size if larger."""
        if not self._seconds:
            return 0.0
        size = num_tokens.bit_length()
        nearest = min(self._seconds, key=lambda known: abs(known - size))
        return self._seconds[nearest] * 2.0 ** max(0, size - nearest)

    def observe(self, num_tokens: int, seconds: float) -> None:
        size = num_tokens.bit_length()
        known = self._seconds.get(size, seconds)
        self._seconds[size] = known + _WEIGHT * (seconds - known)
