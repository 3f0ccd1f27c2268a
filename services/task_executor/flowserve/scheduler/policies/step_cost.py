"""How long a step takes by what it runs, fitted to the steps that were seen."""

_WEIGHT = 0.2  # of the newest step
_PREFILL_MIN = 16  # a step with fewer prefill tokens says little about their price
LOOK_TOKENS = 1  # a step with no more prefill tokens shows what decoding alone takes
_STEPS_UNSEEN_MAX = 32  # with prefills, until decoding alone is looked at again


class StepCost:
    """Decodes cost by size class (1, 2-3, 4-7, ... sequences), prefill tokens a price each."""

    def __init__(self) -> None:
        self._decode_seconds: dict[int, float] = {}
        self._unseen: dict[int, int] = {}  # steps with prefills since, by the same classes
        self._token_seconds: float | None = None

    def observe(self, decoding: int, prefilled: int, seconds: float) -> None:
        size = decoding.bit_length()
        if prefilled <= LOOK_TOKENS:
            known = self._decode_seconds.get(size, seconds)
            self._decode_seconds[size] = known + _WEIGHT * (seconds - known)
            self._unseen[size] = 0
            return
        if size in self._unseen:
            self._unseen[size] += 1
        if prefilled >= _PREFILL_MIN:
            price = max(0.0, seconds - (self.decode_seconds(decoding) or 0.0)) / prefilled
            known = price if self._token_seconds is None else self._token_seconds
            self._token_seconds = known + _WEIGHT * (price - known)

    def wants_look(self, decoding: int) -> bool:
        """Was it never, or long ago, that so many decoded alone? Where prompts never cease nobody
        would see it, and what decoding takes would be held against the prompts' tokens."""
        return self._unseen.get(decoding.bit_length(), _STEPS_UNSEEN_MAX) >= _STEPS_UNSEEN_MAX

    def decode_seconds(self, decoding: int) -> float | None:
        """None before any step without prefills was seen."""
        if not self._decode_seconds:
            return None
        size = decoding.bit_length()
        nearest = min(self._decode_seconds, key=lambda known: abs(known - size))
        return self._decode_seconds[nearest]

    def prefill_within(self, seconds: float, decoding: int) -> int | None:
        """How many prefill tokens fit into a step of that time; None where nobody knows yet."""
        decode_seconds = self.decode_seconds(decoding)
        if decode_seconds is None or not self._token_seconds:
            return None
        return max(0, int((seconds - decode_seconds) / self._token_seconds))
