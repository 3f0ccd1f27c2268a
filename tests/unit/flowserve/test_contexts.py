"""Contexts kept by name, through the master: kept, used, listed, dropped, expired, refused."""

import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import (
    Cancel,
    ContextAnswer,
    ContextFacts,
    ContextRequest,
    DropContext,
    Finished,
    KeepContext,
    ListContexts,
    StepOutput,
    Submit,
)
from services.task_executor.flowserve.rtc import contexts
from tests.unit.flowserve.fingerprint_executor import FingerprintExecutor, answer_alone
from tests.unit.flowserve.harness import make_config

TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class Stand:
    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or make_config(kv_bytes=17 * 100)
        self.now = 1000.0
        executor = FingerprintExecutor(self.config.kv_blocks, self.config.block_size)
        self.master = Master(self.config, executor, monotonic=lambda: self.now)
        self.handles = 0
        self.outputs: list[StepOutput] = []

    def run(self) -> None:
        while (output := self.master.step()) is not None or self.master.has_work:
            if output is not None:
                self.outputs.append(output)

    def ask(self, message: ContextRequest) -> ContextAnswer:
        """And nobody else hears of it."""
        self.outputs.clear()
        self.master.obey(message)
        self.run()
        assert not any(it.accepted or it.started or it.finished for it in self.outputs)
        (answer,) = [answer for it in self.outputs for answer in it.contexts]
        assert answer.handle == message.handle
        return answer

    def keep(
        self,
        context_id: str = "manual",
        tokens: list[int] = TOKENS,
        ttl: float = 60.0,
        salt: bytes = b"",
    ) -> ContextAnswer:
        self.handles += 1
        return self.ask(KeepContext(self.handles, context_id, tokens, ttl, salt))

    def pin(self, context_id: str, tokens: list[int]) -> ContextAnswer:
        self.handles += 1
        return self.ask(KeepContext(self.handles, context_id, tokens, 60.0, is_pinned=True))

    def use(
        self,
        context_id: str,
        prompt: list[int],
        salt: bytes = b"",
        *,
        prompt_logprobs: int | None = None,
    ) -> tuple[Finished, list[int]]:
        self.handles += 1
        self.outputs.clear()
        sampling = SamplingParams(
            4, temperature=0.0, ignore_eos=True, prompt_logprobs=prompt_logprobs
        )
        self.master.obey(
            Submit(self.handles, prompt, sampling, cache_salt=salt, context_id=context_id)
        )
        self.run()
        (end,) = [end for it in self.outputs for end in it.finished]
        return end, [token for it in self.outputs for token in it.token_ids]

    def listed(self, salt: bytes = b"") -> list[str]:
        self.handles += 1
        answer = self.ask(ListContexts(self.handles, salt))
        return [it.context_id for it in answer.contexts]

    def facts(self) -> list[ContextFacts]:
        self.handles += 1
        return self.ask(ListContexts(self.handles, b"")).contexts

    def drop(self, context_id: str, salt: bytes = b"") -> ContextAnswer:
        self.handles += 1
        return self.ask(DropContext(self.handles, context_id, salt))


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_a_kept_context_stands_before_a_prompt(stand: Stand) -> None:
    answer = stand.keep()
    (facts,) = answer.contexts
    assert (facts.context_id, facts.num_tokens, facts.seconds_left) == ("manual", 10, 60.0)
    assert facts.bytes_used == 200 and not facts.is_pinned  # two whole blocks
    end, tokens = stand.use("manual", [11, 12])
    assert (end.prompt_tokens, end.cached_tokens) == (12, 8)
    assert tokens == answer_alone([*TOKENS, 11, 12], 4, ignore_eos=True)


def test_a_context_may_be_all_of_the_prompt(stand: Stand) -> None:
    stand.keep()
    end, tokens = stand.use("manual", [])
    assert end.prompt_tokens == 10 and tokens == answer_alone(TOKENS, 4, ignore_eos=True)


def test_tenants_have_names_of_their_own(stand: Stand) -> None:
    stand.keep(salt=b"one")
    assert stand.listed(b"one") == ["manual"] and stand.listed(b"two") == []
    end, _ = stand.use("manual", [1], b"two")
    assert (end.reason, end.invalid) == ("error", True)
    assert stand.drop("manual", b"two").invalid
    assert stand.listed(b"one") == ["manual"]


def test_all_tenants_contexts_can_be_listed_with_their_salts(stand: Stand) -> None:
    for salt in (b"one", b"two"):
        stand.keep(salt=salt)
    stand.handles += 1
    facts = stand.ask(ListContexts(stand.handles, is_every_tenant=True)).contexts
    rows = sorted((it.cache_salt, it.context_id, it.bytes_used) for it in facts)
    assert rows == [(b"one", "manual", 0), (b"two", "manual", 0)]
    stand.now += 60.0
    stand.handles += 1
    assert not stand.ask(ListContexts(stand.handles, is_every_tenant=True)).contexts


def test_it_goes_when_its_time_is_over(stand: Stand) -> None:
    stand.keep(ttl=30.0)
    stand.now += 29.0
    assert stand.listed() == ["manual"]
    stand.now += 1.0
    assert stand.listed() == []
    end, _ = stand.use("manual", [1])
    assert "has expired" in end.message and end.invalid


def test_one_that_is_dropped_is_unknown(stand: Stand) -> None:
    stand.keep()
    assert not stand.drop("manual").message
    assert stand.drop("manual").param == "context_cache_id"
    assert stand.listed() == []


def test_the_same_name_again_replaces(stand: Stand) -> None:
    stand.keep()
    stand.keep(tokens=[9, 9, 9])
    assert stand.listed() == ["manual"]
    end, _ = stand.use("manual", [1])
    assert end.prompt_tokens == 4


def test_a_pinned_context_outlives_any_crowd(stand: Stand) -> None:
    stand.pin("pinned", TOKENS)
    for first in range(12, 30):
        crowd(stand, first)
    end, _ = stand.use("pinned", [11])
    assert end.cached_tokens == 8
    stand.drop("pinned")
    stand.master.cache.check([])
    assert stand.master.cache.num_available == stand.config.usable_blocks


@pytest.mark.parametrize("is_pinned", [False, True])
def test_a_prompt_that_is_scored_finds_nothing_and_changes_nothing(
    stand: Stand, is_pinned: bool
) -> None:
    """All of it is computed, for its log probabilities, beside what is kept."""
    if is_pinned:
        stand.pin("manual", TOKENS)
    else:
        stand.keep()
    facts = stand.facts()
    available = stand.master.cache.num_available
    end, tokens = stand.use("manual", [11], prompt_logprobs=0)
    assert (end.prompt_tokens, end.cached_tokens) == (11, 0)
    assert tokens == answer_alone([*TOKENS, 11], 4, ignore_eos=True)
    changes = [it for output in stand.outputs for it in output.kv_changes]
    assert len(changes) == 1, "the one block that is behind it"
    assert stand.facts() == facts and stand.master.cache.num_available == available
    end, _ = stand.use("manual", [12])
    assert end.cached_tokens == 8


def crowd(stand: Stand, first: int) -> None:
    stand.handles += 1
    sampling = SamplingParams(2, temperature=0.0, ignore_eos=True)
    stand.master.obey(Submit(stand.handles, [first] * 37, sampling))
    stand.run()


def test_no_more_is_pinned_than_leaves_room_for_the_longest(stand: Stand) -> None:
    assert not stand.pin("one", list(range(1, 17))).message
    refused = stand.pin("two", list(range(20, 37)))
    assert refused.busy and "can be pinned" in refused.message
    assert stand.listed() == ["one"]
    stand.now += 61.0
    assert not stand.pin("two", list(range(20, 37))).message


@pytest.mark.parametrize(
    ("context_id", "tokens", "ttl", "param"),
    [
        ("", TOKENS, 1.0, "context_cache_id"),
        ("x" * 129, TOKENS, 1.0, "context_cache_id"),
        ("a", TOKENS, 0.0, "ttl"),
        ("a", TOKENS, float("nan"), "ttl"),
        ("a", TOKENS, 1e12, "ttl"),
        ("a", [], 1.0, ""),
        ("a", [10**6], 1.0, ""),
        ("a", [1] * 41, 1.0, ""),
    ],
)
def test_what_is_wrong_is_named(
    stand: Stand, context_id: str, tokens: list[int], ttl: float, param: str
) -> None:
    answer = stand.keep(context_id, tokens, ttl)
    assert answer.invalid and answer.message and answer.param == param
    assert stand.listed() == []


def test_there_is_an_end_of_contexts(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "CONTEXTS_MAX", 2)
    for name in ("a", "b"):
        stand.keep(name)
    assert stand.keep("c").busy
    assert not stand.keep("b").message
    monkeypatch.setattr(contexts, "TOKENS_MAX", 25)
    assert stand.keep("b", [1] * 16).busy
    assert not stand.keep("b", [1] * 15).message


def test_one_that_is_cancelled_is_not_kept(stand: Stand) -> None:
    stand.master.obey(KeepContext(7, "manual", TOKENS, 60.0))
    stand.master.obey(Cancel([7]))
    stand.run()
    (answer,) = [answer for it in stand.outputs for answer in it.contexts]
    assert "cancelled" in answer.message and stand.listed() == []


def test_one_that_is_dropped_while_it_is_computed_does_not_come_back(stand: Stand) -> None:
    stand.master.obey(KeepContext(7, "manual", TOKENS, 60.0))
    stand.master.obey(KeepContext(8, "manual", TOKENS, 60.0, b"somebody else"))
    stand.master.obey(DropContext(9, "manual"))
    stand.run()
    answers = {answer.handle: answer for it in stand.outputs for answer in it.contexts}
    assert "cancelled" in answers[7].message
    assert not answers[8].message and not answers[9].message
    assert stand.listed() == [] and stand.listed(b"somebody else") == ["manual"]
