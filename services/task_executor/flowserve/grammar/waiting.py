"""The grammars that wait for the compiling thread; their sources take turns."""

import threading
from collections import OrderedDict

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits


class GrammarsBusy(Exception):
    """Too many grammars wait to be compiled."""


class WaitingGrammars:
    """One source that sends many delays every other by one grammar at a time.

    A grammar that several sources want waits in the line of each, and is taken once.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[bytes, OrderedDict[Grammar, None]] = OrderedDict()
        self._wanted: set[Grammar] = set()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._wanted)

    def put(self, source: bytes, grammar: Grammar) -> None:
        """Raises GrammarsBusy."""
        with self._changed:
            own = len(self._lines.get(source, ()))
            if len(self._wanted) >= limits.WAITING_MAX or own >= limits.WAITING_OF_ONE_MAX:
                raise GrammarsBusy
            self._wanted.add(grammar)
            self._lines.setdefault(source, OrderedDict())[grammar] = None
            self._changed.notify()

    def hurry(self, source: bytes, grammar: Grammar) -> None:
        """Another source wants a grammar that waits: its turn counts as well."""
        with self._changed:
            if grammar in self._wanted and len(self._lines) < limits.WAITING_MAX:
                self._lines.setdefault(source, OrderedDict())[grammar] = None

    def drop(self, grammar: Grammar) -> bool:
        """Whether it still waited; nobody wants it any more."""
        with self._changed:
            if grammar not in self._wanted:
                return False
            self._wanted.remove(grammar)
            for source in [s for s, line in self._lines.items() if grammar in line]:
                del self._lines[source][grammar]
                if not self._lines[source]:
                    del self._lines[source]
            return True

    def take(self) -> Grammar | None:
        """The next one, waiting for it; None once closed."""
        with self._changed:
            while not self._is_closed:
                if (grammar := self._next()) is not None:
                    return grammar
                self._changed.wait()
            return None

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _next(self) -> Grammar | None:
        while self._lines:
            source, line = self._lines.popitem(last=False)
            grammar, _ = line.popitem(last=False)
            if line:
                self._lines[source] = line  # behind everybody else's
            if grammar in self._wanted:
                self._wanted.remove(grammar)
                return grammar
        return None
