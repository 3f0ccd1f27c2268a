"""Sources take turns, nothing is lost, and nobody fills the line for the others."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.waiting import GrammarsBusy, WaitingGrammars


def grammar(name: object) -> Grammar:
    return Grammar("regex", str(name))


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 9)), min_size=1))
def test_everything_is_taken_once_and_sources_take_turns(wishes: list[tuple[bytes, int]]) -> None:
    waiting = WaitingGrammars()
    for source, number in wishes:
        waiting.put(source, grammar((source, number)))
    left = {(source, number) for source, number in wishes}
    assert len(waiting) == len(left)
    since: dict[bytes, int] = {}  # turns of others while this source waits
    while left:
        taken = waiting.take()
        (owner,) = {source for source, number in left if taken == grammar((source, number))}
        left = {wish for wish in left if grammar(wish) != taken}
        since = {source: since.get(source, 0) + 1 for source, _ in left if source != owner}
        assert all(turns <= 2 for turns in since.values())
    assert len(waiting) == 0


def test_a_source_has_its_own_limit() -> None:
    waiting = WaitingGrammars()
    for number in range(limits.WAITING_OF_ONE_MAX):
        waiting.put(b"greedy", grammar(number))
    with pytest.raises(GrammarsBusy):
        waiting.put(b"greedy", grammar("one more"))
    waiting.put(b"modest", grammar("mine"))
    waiting.take()
    assert waiting.take() == grammar("mine")


def test_all_together_have_a_limit() -> None:
    waiting = WaitingGrammars()
    for number in range(limits.WAITING_MAX):
        waiting.put(str(number % 100).encode(), grammar(number))
    with pytest.raises(GrammarsBusy):
        waiting.put(b"new", grammar("one more"))


def test_whoever_wants_a_waiting_grammar_too_brings_its_turn_forward() -> None:
    waiting = WaitingGrammars()
    for name in "xyz":
        waiting.put(b"greedy", grammar(name))
    waiting.hurry(b"modest", grammar("z"))
    waiting.hurry(b"modest", grammar("not here"))
    assert [waiting.take() for _ in range(3)] == [grammar(name) for name in "xzy"]
    assert len(waiting) == 0


def test_what_nobody_wants_any_more_is_not_taken() -> None:
    waiting = WaitingGrammars()
    for name in "xy":
        waiting.put(b"a", grammar(name))
    waiting.hurry(b"b", grammar("x"))
    assert waiting.drop(grammar("x")) and not waiting.drop(grammar("x"))
    assert waiting.take() == grammar("y")


def test_closing_wakes_who_waits() -> None:
    waiting, taken = WaitingGrammars(), list[Grammar | None]()
    thread = threading.Thread(target=lambda: taken.append(waiting.take()))
    thread.start()
    waiting.close()
    thread.join(30)
    assert taken == [None]
