"""The worker process, for real: what it bears, and what is left of it."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.grammars import Grammars, Outcome
from services.task_executor.flowserve.grammar.sources import GrammarError
from services.task_executor.flowserve.grammar.vocabulary import VocabularyFacts
from services.task_executor.flowserve.grammar.worker import TOO_SLOW
from services.task_executor.flowserve.ring import wait_readable
from tests.unit.flowserve.grammar import rig

DEADLINE_SECONDS = 60.0
FINE = Grammar("json_schema", '{"type":"object","properties":{"a":{"type":"integer"}}}')


def properties(count: int) -> str:
    return json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(count)}}, indent=0)


# What the static checks let through and compiling does not.
BOMBS = [
    Grammar("lark", f"start: %json {properties(6000)}"),
    Grammar("json_schema", json.dumps({"allOf": [json.loads(properties(900))] * 10})),
    Grammar("lark", "start: " + " ".join(f"a{i}" for i in range(1500)) + "\n"
            + "\n".join(f"a{i}: b* c?\nb{i}: c" for i in range(1500)) + '\nb: "b"\nc: "c"'),
]  # fmt: skip


@pytest.fixture
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(rig.demo().facts)
    grammars.read_vocabulary()
    yield grammars
    grammars.close()


def await_done(grammars: Grammars, count: int = 1) -> dict[Grammar, Outcome]:
    done: dict[Grammar, Outcome] = {}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(done) < count:
        assert time.monotonic() < deadline, "a grammar is neither ready nor refused"
        wait_readable([grammars.fileno()], 1.0)
        done |= grammars.take_done()
    return done


def await_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_SECONDS)
    assert not alive


def test_a_grammar_becomes_ready_once(grammars: Grammars) -> None:
    assert not grammars.prepare(FINE, b"a") and not grammars.prepare(FINE, b"b")
    assert grammars.num_in_flight == 1
    assert await_done(grammars) == {FINE: Outcome()}
    assert grammars.prepare(FINE, b"c")
    assert grammars.num_kept == 1 and grammars.num_in_flight == 0
    text = rig.demo().encode('{"a": 12}')
    assert grammars.is_complete(FINE, text) and not grammars.is_complete(FINE, text[:2])
    with pytest.raises(GrammarError):
        grammars.is_complete(FINE, rig.demo().encode("x"))


def test_bombs_are_refused_and_cost_the_others_nothing(grammars: Grammars) -> None:
    others = [Grammar("regex", f"[a-z]{{{i}}}") for i in range(1, 20)]
    for bomb in BOMBS:
        assert not grammars.prepare(bomb, b"greedy")
    for other in others:
        assert not grammars.prepare(other, b"modest")
    done = await_done(grammars, len(BOMBS) + len(others))
    assert all(done[bomb].fault and done[bomb].is_invalid for bomb in BOMBS)
    assert done[BOMBS[0]].fault == TOO_SLOW
    assert [done[other] for other in others] == [Outcome()] * len(others)
    assert grammars.num_workers_started == 1
    for bomb in BOMBS:  # once more: known by now
        with pytest.raises(GrammarError):
            grammars.prepare(bomb, b"greedy")


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "(((a{0,30}){0,30}){0,30}){0,30}"),
        Grammar("regex", "(((a+)+)+)+b"),
        Grammar("regex", "(.*a){20}.*(b|c){40}"),
        Grammar("regex", "[ab]*a[ab]{500}"),
        Grammar("json_schema", '{"$defs":{"a":{"items":{"$ref":"#/$defs/a"}}},"$ref":"#/$defs/a"}'),
        Grammar("json_schema", json.dumps({"enum": [f"value {i}" for i in range(5000)]})),
        Grammar("json_schema", json.dumps({"allOf": [json.loads(properties(30))] * 30})),
        Grammar("lark", 'start: s\ns: s s s | s s | "a" | ""'),
    ],
    ids=lambda grammar: grammar.source[:30],
)
def test_what_looks_like_a_bomb_is_served_or_refused(grammar: Grammar) -> None:
    """And where it is served, every step of it stays within the limits."""
    language = rig.demo()
    with contextlib.suppress(GrammarError):
        matcher = language.grammars.matcher(grammar)
        for token in language.encode("a" * 60):
            began = time.thread_time()
            matcher.compute_bitmask()
            assert time.thread_time() - began < 1.0  # a hang, not a measurement
            if not matcher.consume_token(token):
                break


def test_thousands_of_grammars_leave_a_bounded_number(grammars: Grammars) -> None:
    count, batch = 600, 100
    for first in range(0, count, batch):
        for number in range(first, first + batch):
            schema = json.dumps({"properties": {f"k{number}": {"type": "string"}}})
            grammars.prepare(Grammar("json_schema", schema), b"")
        await_done(grammars, batch)
    assert grammars.num_kept == limits.KEPT_MAX
    assert grammars.num_workers_started == 1


def test_a_worker_that_is_killed_is_replaced(grammars: Grammars) -> None:
    grammars.prepare(FINE, b"")
    await_done(grammars)
    old = rig.family(grammars.worker_pid)
    assert len(old) == 2  # the keeper and its hand
    for process in old:
        process.suspend()  # so that it is asked and does not answer
    grammars.prepare(Grammar("regex", "a"), b"")
    for process in old:
        process.kill()
    assert await_done(grammars) == {Grammar("regex", "a"): Outcome()}
    await_end(old)
    assert grammars.num_workers_started == 2


def test_a_hand_that_is_killed_is_nobodys_fault(grammars: Grammars) -> None:
    grammars.prepare(FINE, b"")
    await_done(grammars)
    rig.family(grammars.worker_pid)[1].kill()
    grammars.prepare(Grammar("regex", "a"), b"")
    assert await_done(grammars) == {Grammar("regex", "a"): Outcome()}


def test_closing_leaves_no_process_even_while_one_compiles() -> None:
    for wait in (True, False):
        grammars = Grammars(rig.demo().facts)
        grammars.read_vocabulary()
        grammars.prepare(FINE, b"")
        if wait:
            await_done(grammars)
            processes = rig.family(grammars.worker_pid)
        grammars.prepare(BOMBS[0], b"")
        grammars.close()
        if wait:
            await_end(processes)
        assert grammars.worker_pid is None


def test_what_nobody_waits_for_is_not_compiled(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMPILE_WALL_SECONDS", DEADLINE_SECONDS)
    grammars.prepare(FINE, b"")
    await_done(grammars)
    many = [Grammar("regex", f"a{{{i}}}") for i in range(100)]
    last = Grammar("regex", "b")
    with rig.suspended(grammars):
        for grammar in many:
            grammars.prepare(grammar, b"")
        for grammar in many[1:]:
            grammars.forgo(grammar)
        grammars.prepare(last, b"")
    assert await_done(grammars, 2).keys() == {many[0], last}
    assert grammars.num_kept == 3 and grammars.num_in_flight == 0


def test_a_folder_without_a_usable_tokenizer_refuses_grammars_only(tmp_path: Path) -> None:
    for content in (None, "{}", '{"version": "1.0"}'):
        if content is not None:
            (tmp_path / "tokenizer.json").write_text(content)
        grammars = Grammars(VocabularyFacts(str(tmp_path), 100, (1,)))
        grammars.read_vocabulary()
        with pytest.raises(GrammarError, match="tokenizer"):
            grammars.prepare(FINE, b"")
        grammars.close()
