"""What an executor asks of the grammars of its rows; the engine lends it an implementation."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from deepflow.core.mixing import I64
from deepflow.core.sampling import Grammar


class Matchers(Protocol):
    """Follows the answer of every row that has a grammar."""

    def admit(self, row: int, grammar: Grammar, answer_token_ids: list[int]) -> None:
        """The row's grammar was prepared before; its answer so far is walked through."""

    def release(self, row: int) -> None:
        """Forget the row; one without a grammar is fine."""

    def masks(self, rows: I64) -> "tuple[I64, npt.NDArray[np.int32]] | None":
        """Which of the entries have a grammar, and the bits of what it allows next."""

    def accept(self, rows: I64, token_ids: I64) -> tuple[list[int], dict[int, str]]:
        """Take in what was drawn: rows whose grammar allows nothing more, and rows that failed."""


class NoMatchers:
    """An engine that prepares no grammars."""

    def admit(self, row: int, grammar: Grammar, answer_token_ids: list[int]) -> None:
        raise RuntimeError("a grammar was admitted that nobody has prepared")

    def release(self, row: int) -> None:
        """Nothing is held."""

    def masks(self, rows: I64) -> "tuple[I64, npt.NDArray[np.int32]] | None":
        return None

    def accept(self, rows: I64, token_ids: I64) -> tuple[list[int], dict[int, str]]:
        return [], {}
