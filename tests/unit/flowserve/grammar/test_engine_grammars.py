"""Sequences with a grammar through the whole engine, on the device that has no model."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from deepflow.core.sampling import Grammar, SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.row_matchers import RowMatchers
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import (
    Cancel,
    Finished,
    Load,
    Loaded,
    Progress,
    StepOutput,
    Submit,
)
from services.task_executor.flowserve.ring import wait_readable
from tests.unit.flowserve.grammar import rig
from tests.unit.flowserve.test_engine_process import Engine

DEADLINE_SECONDS = 60.0
SCHEMA = Grammar(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {"kind": {"enum": ["cat", "dog"]}, "old": {"type": "boolean"}},
            "required": ["kind", "old"],
            "additionalProperties": False,
        }
    ),
)
BOMB = Grammar("regex", "(" * 3000 + ")" * 3000 + "|".join("[ab]*a[ab]{99}" for _ in range(5000)))
PROMPT = [1, 7, 8, 9]


class Rig:
    """A master, stepped until what is awaited has happened."""

    def __init__(self, **settings: int) -> None:
        load = Load("demo", str(MODEL_DIR), "emulated:zero", "r1", settings)
        built = build_executor(load, lambda step: nullcontext())
        self.grammars = built.grammars
        self.master = Master(built.config, built.executor, grammars=built.grammars)
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, Finished] = {}

    def submit(
        self, handle: int, sampling: SamplingParams, resume: list[int] | None = None
    ) -> None:
        self.tokens[handle] = list(resume or [])
        self.master.obey(Submit(handle, list(PROMPT), sampling, resume or []))

    def run(self, *handles: int) -> None:
        """Until these have ended."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self.finished.keys() >= set(handles):
            assert time.monotonic() < deadline, "a sequence does not end"
            if not self.master.has_work:
                wait_readable(self.master.wake_fds, 1.0)
            self.take(self.master.step())

    def take(self, output: StepOutput | None) -> None:
        if output is None:
            return
        for handle, token in zip(output.handles, output.token_ids, strict=True):
            self.tokens[handle].append(token)
        self.finished |= {finished.handle: finished for finished in output.finished}

    def text(self, handle: int) -> str:
        return rig.demo().decode(self.tokens[handle])


@pytest.fixture
def engine() -> Iterator[Rig]:
    engine = Rig()
    yield engine
    engine.master.close()


def sampling(
    grammar: Grammar | None, seed: int = 1, max_tokens: int = 200, min_tokens: int = 0
) -> SamplingParams:
    return SamplingParams(
        max_tokens,
        seed=seed,
        min_tokens=min_tokens,
        ignore_eos=grammar is None,
        grammar=grammar,
        grammar_param="response_format",
    )


def test_the_emulated_device_follows_grammars(engine: Rig) -> None:
    for seed in range(8):
        engine.submit(seed, sampling(SCHEMA, seed))
    engine.run(*range(8))
    texts = [engine.text(handle) for handle in range(8)]
    for text in texts:
        value = json.loads(text)
        assert value.keys() == {"kind", "old"} and value["kind"] in ("cat", "dog")
    assert len(set(texts)) > 1
    assert {finished.reason for finished in engine.finished.values()} == {"stop"}
    assert engine.grammars.num_kept == 1 and engine.grammars.num_workers_started == 1


def test_alone_and_among_others_the_answer_is_the_same(engine: Rig) -> None:
    grammars = [SCHEMA, None, Grammar("regex", "[a-z]{3,9}(-[0-9]+)?"), SCHEMA]
    for handle, grammar in enumerate(grammars):
        engine.submit(handle, sampling(grammar, seed=handle))
        engine.submit(10 + handle, sampling(grammar, seed=handle))
        engine.run(10 + handle)
    engine.run(*range(4))
    for handle in range(4):
        assert engine.tokens[handle] == engine.tokens[10 + handle]


def test_a_preempted_answer_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[int] = []
    admit = RowMatchers.admit

    def counting(self: RowMatchers, row: int, grammar: Grammar, answer: list[int]) -> None:
        replayed.append(len(answer))
        admit(self, row, grammar, answer)

    monkeypatch.setattr(RowMatchers, "admit", counting)
    grammar = Grammar("regex", "([a-z]{9} ){60}")
    roomy, tight = Rig(), Rig(kv_blocks=15, max_tokens=224)
    for engine in (roomy, tight):
        for handle in range(3):
            engine.submit(handle, sampling(grammar, seed=handle, max_tokens=220))
        engine.run(*range(3))
        engine.master.close()
    for handle in range(3):
        assert re.fullmatch(grammar.source, roomy.text(handle))
        assert roomy.tokens[handle] == tight.tokens[handle]
    assert len(replayed) > 6 and max(replayed) > 0, "nobody was preempted"


def test_an_answer_is_resumed_in_the_middle_and_at_its_end(engine: Rig) -> None:
    engine.submit(0, sampling(SCHEMA))
    engine.run(0)
    whole = engine.tokens[0]
    for handle, known in enumerate((1, len(whole) // 2, len(whole)), start=1):
        engine.submit(handle, sampling(SCHEMA), resume=whole[:known])
        engine.run(handle)
        assert engine.tokens[handle] == whole
        assert engine.finished[handle].reason == "stop"
    engine.submit(9, sampling(SCHEMA), resume=rig.demo().encode("no json"))
    engine.run(9)
    assert engine.finished[9].invalid and "does not fit" in engine.finished[9].message


def test_the_grammar_may_end_an_answer_before_its_min_tokens(engine: Rig) -> None:
    engine.submit(0, sampling(Grammar("choice", '["a"]'), min_tokens=9))
    engine.submit(1, sampling(Grammar("regex", "a{0,5}"), min_tokens=4))
    engine.submit(2, sampling(Grammar("choice", '[""]'), min_tokens=4))
    engine.run(0, 1, 2)
    assert engine.text(0) == "a" and engine.text(2) == ""
    assert len(engine.tokens[1]) >= 4 or len(engine.text(1)) == 5
    assert {engine.finished[handle].reason for handle in range(3)} == {"stop"}


def test_a_bad_grammar_is_refused_before_it_is_accepted(engine: Rig) -> None:
    engine.submit(0, sampling(Grammar("regex", "(a")))
    engine.run(0)
    refused = engine.finished[0]
    assert refused.reason == "error" and refused.invalid and refused.param == "response_format"
    assert refused.message == "'response_format' cannot be followed: unclosed group"
    assert refused.completion_tokens == 0


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "x-guidance": {"nope": 5}}, "unknown field `nope`"),
        ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "to an end"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(1001)}}, "1001 properties"),
    ],
)
def test_a_bad_schema_inside_a_grammar_is_named_by_its_own_field(
    engine: Rig, schema: Any, said: str
) -> None:
    good = '{"type": "object"}'
    source = f"start: a | b | c\na: %json {good}\nb: %json {json.dumps(schema)}\nc: %json {good}\n"
    asked = replace(
        sampling(Grammar("lark", source)),
        grammar_param="tools",
        grammar_part_params=("first", "second", "third"),
    )
    for handle in range(2):  # the second time it is known
        engine.submit(handle, asked)
        engine.run(handle)
        refused = engine.finished[handle]
        assert refused.invalid and refused.param == "second"
        assert refused.message.startswith("'second' cannot be followed: ")
        assert said in refused.message and "\n" not in refused.message


def test_steps_go_on_while_bombs_are_looked_at(
    engine: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMPILE_WALL_SECONDS", DEADLINE_SECONDS)
    engine.submit(9, sampling(SCHEMA))
    engine.run(9)
    engine.submit(0, sampling(None, max_tokens=900))
    engine.take(engine.master.step())
    with rig.suspended(engine.grammars):  # so that they are looked at for long
        for handle in range(1, 5):
            bomb = Grammar(BOMB.kind, BOMB.source + "c" * handle)
            engine.submit(handle, sampling(bomb))
        for step in range(1, 50):
            engine.take(engine.master.step())
            assert engine.master.num_held == 4 and len(engine.tokens[0]) == step + 1
    engine.run(1, 2, 3, 4)
    assert all(engine.finished[handle].invalid for handle in range(1, 5))
    assert engine.grammars.num_workers_started == 1


def test_a_held_sequence_can_be_cancelled(engine: Rig) -> None:
    for handle in range(20):
        engine.submit(handle, sampling(Grammar("regex", f"a{{{handle}}}")))
    assert engine.master.num_held == 20 and not engine.master.has_work
    engine.master.obey(Cancel(list(range(19))))
    engine.run(*range(20))
    assert [engine.finished[handle].reason for handle in range(19)] == ["cancelled"] * 19
    assert engine.finished[19].reason == "stop"
    engine.submit(20, sampling(SCHEMA))
    engine.master.obey(Cancel([20]))
    engine.run(20)
    assert engine.finished[20].reason == "cancelled"
    while engine.grammars.num_in_flight:
        assert wait_readable(engine.master.wake_fds, DEADLINE_SECONDS)
        engine.take(engine.master.step())
    # Nobody waited for it: the engine must not be kept awake by it either.
    assert not wait_readable(engine.master.wake_fds, 0)


def test_too_many_grammars_at_once_are_the_engines_fault(
    engine: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HELD_MAX", 1)
    engine.submit(0, sampling(SCHEMA))
    engine.submit(1, sampling(Grammar("regex", "a")))
    engine.run(0, 1)
    assert engine.finished[1].busy and not engine.finished[1].invalid
    engine.submit(2, sampling(Grammar("regex", "a")))
    engine.run(2)
    assert engine.finished[2].reason == "stop"


def test_a_row_whose_masks_are_slow_fails_alone(
    engine: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.submit(0, sampling(None, max_tokens=60))
    engine.submit(1, sampling(Grammar("regex", "[a-z]{500}"), max_tokens=600))
    monkeypatch.setattr(limits, "SLOW_MASK_SECONDS", 0.0)
    engine.run(0, 1)
    assert engine.finished[0].reason == "length"
    failed = engine.finished[1]
    assert failed.reason == "error" and "too long" in failed.message
    # Its own grammar was too dear: the request's fault, in the request's own words.
    assert failed.invalid and failed.param == "response_format"


def test_the_process_wakes_up_for_a_grammar_and_leaves_no_worker() -> None:
    engine = Engine(1 << 20)
    try:
        engine.send(Load("demo", str(MODEL_DIR), "emulated:zero", "r1"))
        while isinstance(message := engine.receive(), Progress):
            pass
        assert isinstance(message, Loaded)
        engine.send(Submit(1, PROMPT, sampling(SCHEMA)))
        tokens = [token for step in engine.receive_steps(1) for token in step.token_ids]
        assert json.loads(rig.demo().decode(tokens)).keys() == {"kind", "old"}
        children = psutil.Process(engine.process.pid).children(recursive=True)
        assert len(children) == 2  # the keeper of the grammars and its hand
    finally:
        engine.close()
    assert not psutil.wait_procs(children, timeout=DEADLINE_SECONDS)[1]
