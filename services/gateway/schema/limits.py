"""The bounds that validation asks for."""

import msgspec

# Counts travel as uint32; a bound below 2**31 keeps sums of two of them in range as well.
COUNT_MAX = 2**31 - 1
TOKEN_ID_MAX = 2**32 - 1
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1
NAME_CHARACTERS_MAX = 256


class Limits(msgspec.Struct, frozen=True):
    n: int = 16
    prompts: int = 64
    choices: int = 128
    messages: int = 4096
    stop_strings: int = 4
    stop_characters: int = 256
