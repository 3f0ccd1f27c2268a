import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.errors import InvalidRequest, TooLarge
from deepflow.v1 import contexts_pb2, jobs_pb2
from services.gateway.schema import context_caches as schema
from services.gateway.schema.fields import Fields
from services.gateway.schema.shared import HONOURED
from services.job_executor.contexts import rules
from services.job_executor.contexts.expansion import expand


def record(number: int, **fields: object) -> contexts_pb2.ContextRecord:
    return contexts_pb2.ContextRecord(id=f"ctx-{number}", **fields)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 1_000_000)), max_size=90)
)
def test_of_those_made_at_one_time_the_oldest_fit_and_nobody_else(
    made: list[tuple[int, bool, int]],
) -> None:
    """Each decides for itself, seeing all: together they keep to every limit."""
    records = [
        record(i, created_unix_ms=at, is_pinned=pinned, content_bytes=size)
        for i, (at, pinned, size) in enumerate(made)
    ]
    stay = [it for it in records if rules.fault_of(it, records) is None]
    assert len(stay) <= rules.PER_TENANT_MAX
    assert sum(it.is_pinned for it in stay) <= rules.PINNED_PER_TENANT_MAX
    assert sum(it.content_bytes for it in stay) <= rules.BYTES_PER_TENANT_MAX
    if records:
        first = min(records, key=lambda it: (it.created_unix_ms, it.id))
        assert first in stay


def test_what_its_maker_left_behind_is_over_before_its_time() -> None:
    waiting = record(1, created_unix_ms=0, expires_unix_ms=10**10)
    done = record(2, created_unix_ms=0, expires_unix_ms=10**10, is_complete=True)
    late = rules.MAKING_SECONDS_MAX * 1000
    assert not rules.is_over(waiting, late - 1) and rules.is_over(waiting, late)
    assert not rules.is_over(done, late) and rules.is_over(done, 10**10)
    assert rules.is_alive(done, late) and not rules.is_alive(done, 10**10)
    assert not rules.is_alive(waiting, 0)


def test_ids_are_what_the_gateway_takes() -> None:
    ids = {rules.new_context_id() for _ in range(100)}
    assert len(ids) == 100
    read = {field.name: field.read for field in HONOURED}["context_cache_id"]
    for it in ids:
        assert rules.is_context_id(it) and read(it, "context_cache_id", None) == it  # type: ignore[arg-type]
    for bad in ("", "ctx-", "ctx-" + "g" * 32, "ctx-" + "a" * 33, "ctx-" + "a" * 32 + "\n"):
        assert not rules.is_context_id(bad)
        with pytest.raises(InvalidRequest) as caught:
            read(bad, "context_cache_id", None)  # type: ignore[arg-type]
        assert caught.value.param == "context_cache_id"


def test_both_borders_have_the_same_limits() -> None:
    assert isinstance(schema.CONTEXT_CACHE, Fields)
    assert (schema.TTL_SECONDS_MIN, schema.TTL_SECONDS_MAX) == (
        rules.TTL_SECONDS_MIN,
        rules.TTL_SECONDS_MAX,
    )
    assert schema.NAME_CHARACTERS_MAX == rules.NAME_CHARACTERS_MAX


def request(**fields: object) -> contexts_pb2.CreateContextCacheRequest:
    content = contexts_pb2.ContextContent(prompt=jobs_pb2.Prompt(text="hello"))
    given_fields = {"ttl_seconds": 60.0, "content": content, **fields}
    return contexts_pb2.CreateContextCacheRequest(**given_fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ttl_seconds": 0.5}, "ttl_seconds"),
        ({"ttl_seconds": math.nan}, "ttl_seconds"),
        ({"ttl_seconds": 1e9}, "ttl_seconds"),
        ({"name": "x" * 129}, "name"),
        ({"content": contexts_pb2.ContextContent()}, "messages"),
    ],
)
def test_a_bad_request_names_its_field(fields: dict[str, object], param: str) -> None:
    rules.check_request(request())
    with pytest.raises(InvalidRequest) as caught:
        rules.check_request(request(**fields))
    assert caught.value.param == param


def test_contents_have_a_bound() -> None:
    text = "x" * (rules.CONTENT_BYTES_MAX + 1)
    with pytest.raises(TooLarge) as caught:
        rules.check_request(
            request(content=contexts_pb2.ContextContent(prompt=jobs_pb2.Prompt(text=text)))
        )
    assert caught.value.param == "prompt"


def chat_content(*texts: str) -> contexts_pb2.ContextContent:
    content = contexts_pb2.ContextContent()
    for text in texts:
        content.chat.messages.add(role="user", content=text)
    return content


@given(st.lists(st.text(), min_size=1, max_size=5), st.lists(st.text(), min_size=1, max_size=5))
def test_a_chat_goes_on_behind_its_context(kept: list[str], own: list[str]) -> None:
    job = jobs_pb2.Job(chat=chat_content(*own).chat, context_cache_id="ctx-1")
    expand(job, chat_content(*kept))
    assert [it.content for it in job.chat.messages] == kept + own


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_every_prompt_goes_on_behind_its_context(kept: str, own: list[str]) -> None:
    content = contexts_pb2.ContextContent(prompt=jobs_pb2.Prompt(text=kept))
    job = jobs_pb2.Job()
    job.completion.prompts.extend(jobs_pb2.Prompt(text=it) for it in own)
    expand(job, content)
    assert [it.text for it in job.completion.prompts] == [kept + it for it in own]


def tokens(*ids: int) -> jobs_pb2.Prompt:
    return jobs_pb2.Prompt(tokens=jobs_pb2.TokenIds(ids=ids))


def test_token_ids_go_on_behind_token_ids() -> None:
    job = jobs_pb2.Job(completion=jobs_pb2.CompletionInput(prompts=[tokens(3, 4), tokens(5)]))
    expand(job, contexts_pb2.ContextContent(prompt=tokens(1, 2)))
    assert [list(it.tokens.ids) for it in job.completion.prompts] == [[1, 2, 3, 4], [1, 2, 5]]


@pytest.mark.parametrize(
    ("job", "content"),
    [
        (jobs_pb2.Job(chat=chat_content("a").chat), contexts_pb2.ContextContent(prompt=tokens(1))),
        (
            jobs_pb2.Job(completion=jobs_pb2.CompletionInput(prompts=[tokens(3)])),
            chat_content("a"),
        ),
        (
            jobs_pb2.Job(completion=jobs_pb2.CompletionInput(prompts=[tokens(3)])),
            contexts_pb2.ContextContent(prompt=jobs_pb2.Prompt(text="a")),
        ),
        (jobs_pb2.Job(embedding=jobs_pb2.EmbeddingInput()), chat_content("a")),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    job: jobs_pb2.Job, content: contexts_pb2.ContextContent
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        expand(job, content)
    assert (caught.value.param, caught.value.reason) == (
        "context_cache_id",
        "context_cache_mismatch",
    )
