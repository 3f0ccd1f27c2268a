"""What is in use stays, the rest is bounded."""

from typing import Any

import pytest

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.prototypes import Prototypes
from services.task_executor.flowserve.grammar.waiting import GrammarsBusy


def fill(prototypes: Prototypes, count: int, size: int = 4) -> None:
    for number in range(count):
        matcher: Any = object()  # never looked into
        prototypes.keep(Grammar("regex", str(number).rjust(size)), matcher)


def grammar(number: int, size: int = 4) -> Grammar:
    return Grammar("regex", str(number).rjust(size))


def test_ten_thousand_leave_the_latest() -> None:
    prototypes = Prototypes()
    fill(prototypes, 10_000)
    assert len(prototypes) == limits.KEPT_MAX
    assert prototypes.find(grammar(9_999)) and not prototypes.find(grammar(0))


def test_what_was_asked_for_stays_longest() -> None:
    prototypes = Prototypes()
    fill(prototypes, limits.KEPT_MAX)
    assert prototypes.find(grammar(0))
    prototypes.keep(Grammar("regex", "new"), object())  # type: ignore[arg-type]
    assert prototypes.find(grammar(0)) and not prototypes.find(grammar(1))


def test_large_sources_leave_fewer() -> None:
    prototypes = Prototypes()
    fill(prototypes, 20, size=limits.MIB)
    assert len(prototypes) == limits.KEPT_BYTES_MAX // limits.MIB


def test_what_a_sequence_needs_stays_until_the_last_has_ended() -> None:
    prototypes = Prototypes()
    fill(prototypes, 1)
    for handle in (1, 2):
        prototypes.pin(handle, grammar(0))
    prototypes.pin(3, grammar(5_000))  # before it is compiled
    fill(prototypes, 10_000)
    for handle in (1, 3):
        prototypes.unpin(handle)
    fill(prototypes, 10_000)
    assert prototypes.find(grammar(0)) and not prototypes.find(grammar(5_000))
    assert len(prototypes) == limits.KEPT_MAX + 1
    prototypes.unpin(2)
    prototypes.unpin(2)
    fill(prototypes, 10_000)
    assert not prototypes.find(grammar(0)) and len(prototypes) == limits.KEPT_MAX


def test_so_many_different_ones_and_no_more_are_in_use() -> None:
    prototypes = Prototypes()
    for handle in range(limits.HELD_MAX):
        prototypes.pin(handle, grammar(handle))
    prototypes.pin(-1, grammar(0))
    with pytest.raises(GrammarsBusy):
        prototypes.pin(-2, grammar(-2))
    prototypes.unpin(1)
    prototypes.pin(-2, grammar(-2))
