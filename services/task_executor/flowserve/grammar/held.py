"""Sequences that wait for their grammar. Pure: who waits for what, and who is released."""

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.messages import Submit


class HeldSequences:
    def __init__(self) -> None:
        self._by_handle: dict[int, Submit] = {}
        self._by_grammar: dict[Grammar, dict[int, Submit]] = {}

    def __len__(self) -> int:
        return len(self._by_handle)

    def __contains__(self, grammar: Grammar) -> bool:
        """Does anybody wait for it?"""
        return grammar in self._by_grammar

    def hold(self, message: Submit) -> None:
        grammar = _grammar_of(message)
        self._by_handle[message.handle] = message
        self._by_grammar.setdefault(grammar, {})[message.handle] = message

    def drop(self, handles: list[int]) -> list[Submit]:
        """Those of the handles that are held here, in order; they are not any more."""
        dropped = [self._by_handle.pop(handle) for handle in handles if handle in self._by_handle]
        for message in dropped:
            grammar = _grammar_of(message)
            del self._by_grammar[grammar][message.handle]
            if not self._by_grammar[grammar]:
                del self._by_grammar[grammar]
        return dropped

    def release(self, grammar: Grammar) -> list[Submit]:
        """Everybody who waits for it, first come first."""
        return self.drop(list(self._by_grammar.get(grammar, ())))

    def release_all(self) -> list[Submit]:
        return self.drop(list(self._by_handle))


def _grammar_of(message: Submit) -> Grammar:
    grammar = message.sampling.grammar
    assert grammar is not None, "only sequences with a grammar wait for one"
    return grammar
