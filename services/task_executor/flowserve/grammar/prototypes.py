"""Compiled grammars at the beginning of their language: the latest used, and those in use.

The master and the thread of the steps both look here.
"""

import threading
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.waiting import GrammarsBusy

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Prototypes:
    """What a sequence needs stays; of the others a bounded number, the least used go first."""

    def __init__(self) -> None:
        self._pinned: dict[Grammar, LLMatcher] = {}
        self._free: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._free_bytes = 0
        self._by_handle: dict[int, Grammar] = {}
        self._pins: Counter[Grammar] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pinned) + len(self._free)

    def find(self, grammar: Grammar) -> "LLMatcher | None":
        with self._lock:
            if grammar in self._free:
                self._free.move_to_end(grammar)
                return self._free[grammar]
            return self._pinned.get(grammar)

    def keep(self, grammar: Grammar, matcher: "LLMatcher") -> None:
        with self._lock:
            if grammar in self._pins:
                self._pinned[grammar] = matcher
            elif grammar not in self._free:
                self._add_free(grammar, matcher)

    def pin(self, handle: int, grammar: Grammar) -> None:
        """Raises GrammarsBusy where too many different ones are pinned."""
        with self._lock:
            if grammar not in self._pins and len(self._pins) >= limits.HELD_MAX:
                raise GrammarsBusy
            self._by_handle[handle] = grammar
            self._pins[grammar] += 1
            if grammar in self._free:
                self._free_bytes -= len(grammar.source)
                self._pinned[grammar] = self._free.pop(grammar)

    def unpin(self, handle: int) -> None:
        """Fine for handles that never pinned anything."""
        with self._lock:
            grammar = self._by_handle.pop(handle, None)
            if grammar is None:
                return
            self._pins[grammar] -= 1
            if not self._pins[grammar]:
                del self._pins[grammar]
                if matcher := self._pinned.pop(grammar, None):
                    self._add_free(grammar, matcher)

    def _add_free(self, grammar: Grammar, matcher: "LLMatcher") -> None:
        self._free[grammar] = matcher
        self._free_bytes += len(grammar.source)
        while len(self._free) > 1 and (
            len(self._free) > limits.KEPT_MAX or self._free_bytes > limits.KEPT_BYTES_MAX
        ):
            oldest, _ = self._free.popitem(last=False)
            self._free_bytes -= len(oldest.source)
