"""How tokens are drawn: parameters, and randomness that any machine can repeat.

Every draw is a pure function of (seed, choice index, position). No generator state exists, so a
continuation on another machine draws the numbers that the first one would have drawn.
"""

import msgspec

_MASK = (1 << 64) - 1
_CHOICE_STEP = 0x9E3779B97F4A7C15
_POSITION_STEP = 0xD1B54A32D192ED03


class Grammar(msgspec.Struct, frozen=True):
    """The answer must be a word of this language; equal grammars share what is made of them."""

    kind: str  # json_schema, regex, choice (a JSON array of strings) or lark
    source: str


class SamplingParams(msgspec.Struct, frozen=True):
    """What the engine needs to draw the tokens of one sequence; complete, nothing is looked up."""

    max_tokens: int  # 0: compute the prompt, draw nothing
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    top_k: int = 0  # 0 = every token may be drawn
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and answer
    presence_penalty: float = 0.0  # over the answer, as is the next
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0  # before these many no token ends the answer
    logprobs: int | None = None  # alternatives wanted beside each drawn token
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    grammar_param: str = ""  # the request's field that it came from, for errors
    grammar_part_params: tuple[str, ...] = ()  # those of the schemas inside it

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
