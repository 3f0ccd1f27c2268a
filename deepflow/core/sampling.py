"""How tokens are drawn: parameters, and randomness that any machine can repeat.

Every draw is a pure function of (seed, choice index, position). No generator state exists, so a
continuation on another machine draws the numbers that the first one would have drawn.
"""

import msgspec

_MASK = (1 << 64) - 1
_CHOICE_STEP = 0x9E3779B97F4A7C15
_POSITION_STEP = 0xD1B54A32D192ED03


class SamplingParams(msgspec.Struct, frozen=True):
    """What the engine needs to draw the tokens of one sequence."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


def uniform(seed: int, choice_index: int, position: int) -> float:
    """The draw for one position of one choice, in [0, 1)."""
    state = (seed + choice_index * _CHOICE_STEP + position * _POSITION_STEP) & _MASK
    return (_mix(_mix(state) ^ seed) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    value = (value + _CHOICE_STEP) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
