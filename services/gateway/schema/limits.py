"""The bounds that validation asks for."""

import msgspec

# Counts travel as uint32; a bound below 2**31 keeps sums of two of them in range as well.
COUNT_MAX = 2**31 - 1
TOKEN_ID_MAX = 2**32 - 1
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1
NAME_CHARACTERS_MAX = 256
LOGPROBS_MAX = 20
TOOLS_MAX = 128
LOGIT_BIAS_MAX = 300
STOP_TOKEN_IDS_MAX = 128
GRAMMAR_CHOICES_MAX = 1024
CALLS_MAX = 128


class Limits(msgspec.Struct, frozen=True):
    n: int = 16
    prompts: int = 64
    embedding_inputs: int = 2048
    choices: int = 128
    messages: int = 4096
    stop_strings: int = 4
    stop_characters: int = 256
    json_depth: int = 64
    grammar_bytes: int = 128 * 1024
    template_bytes: int = 16 * 1024
