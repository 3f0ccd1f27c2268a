"""The mixer of deepflow.core.sampling over numpy columns, bit for bit the same; needs numpy."""

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_CHOICE_STEP = _INCREMENT
_POSITION_STEP = np.uint64(0xD1B54A32D192ED03)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31 = np.uint64(30), np.uint64(27), np.uint64(31)
_SHIFT_11 = np.uint64(11)


def mix(values: U64) -> U64:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    mixed = values + _INCREMENT
    mixed ^= mixed >> _SHIFT_30
    mixed *= _MULTIPLY_1
    mixed ^= mixed >> _SHIFT_27
    mixed *= _MULTIPLY_2
    mixed ^= mixed >> _SHIFT_31
    return mixed


def uniform_bits(seeds: U64, choices: U64, positions: U64) -> U64:
    """The 53 bits behind deepflow.core.sampling.uniform(seed, choice, position)."""
    states = seeds + choices * _CHOICE_STEP + positions * _POSITION_STEP
    return mix(mix(states) ^ seeds) >> _SHIFT_11


def uniforms(seeds: U64, choices: I64, positions: I64) -> npt.NDArray[np.float64]:
    """deepflow.core.sampling.uniform of every row."""
    bits = uniform_bits(seeds, choices.view(np.uint64), positions.view(np.uint64))
    return bits.astype(np.float64) * 2.0**-53
