"""The tokens of a model as llguidance sees them, and the matchers over them."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.reasons import reason_of
from services.task_executor.flowserve.grammar.sources import GrammarError, to_llguidance

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

TOKENIZER_FILE = "tokenizer.json"
_TOKENIZER_IS_LARGER = "vocab size too small"


class VocabularyFacts(msgspec.Struct, frozen=True):
    """All that a process needs to build the vocabulary."""

    folder: str
    size: int  # of the model's logits; the tokenizer's own may be another
    eos_token_ids: tuple[int, ...]


class Vocabulary:
    """Takes about a second for 150,000 tokens, with the interpreter held: not beside a step."""

    def __init__(self, facts: VocabularyFacts) -> None:
        """Raises GrammarError where the folder's tokenizer cannot be used."""
        path = Path(facts.folder) / TOKENIZER_FILE
        if not path.is_file():
            raise GrammarError(f"structured output needs {TOKENIZER_FILE} in the model's folder")
        try:
            self._tokenizer = _read(str(path), facts)
        except (ValueError, OSError) as error:
            raise GrammarError(f"the tokenizer cannot be used for grammars: {error}") from error
        self._limits = _parser_limits()

    @property
    def mask_words(self) -> int:
        """Of 32 tokens each, in the masks that its matchers fill."""
        return -(-self._tokenizer.vocab_size // 32)

    def compile(self, grammar: Grammar) -> "LLMatcher":
        """A matcher at the beginning of its language, the first mask computed: much is done only
        then, and the copies share it. Raises GrammarError.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(
            self._tokenizer, to_llguidance(grammar), log_level=-1, limits=self._limits
        )
        raise_error_of(matcher)
        matcher.compute_bitmask()
        raise_error_of(matcher)
        return matcher


def raise_error_of(matcher: "LLMatcher") -> None:
    if not matcher.is_error():
        return
    raise GrammarError(reason_of(matcher.get_error()))


def _read(path: str, facts: VocabularyFacts) -> "LLTokenizer":
    """Without slices: for large vocabularies they cost more to make than they save in masks."""
    from llguidance import LLTokenizer

    eos = list(facts.eos_token_ids) or None
    try:
        return LLTokenizer(path, n_vocab=facts.size, eos_token=eos, slices=[])
    except ValueError as error:
        if _TOKENIZER_IS_LARGER not in str(error):
            raise
    # It knows tokens that the model does not: they are cut from every mask.
    return LLTokenizer(path, eos_token=eos, slices=[])


def _parser_limits() -> "LLParserLimits":
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=limits.INITIAL_LEXER_FUEL,
        step_lexer_fuel=limits.STEP_LEXER_FUEL,
        step_max_items=limits.STEP_ITEMS_MAX,
        max_lexer_states=limits.LEXER_STATES_MAX,
        max_grammar_size=limits.GRAMMAR_SYMBOLS_MAX,
        verbose_errors=False,
    )
