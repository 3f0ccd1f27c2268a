"""Languages made to hurt: each costs its own request at most, and the engine keeps its size."""

from collections.abc import AsyncIterator, Iterator

import httpx
import psutil
import pytest

from tests.e2e.bombs import BOMBS, HARD, LATE
from tests.stack import ANSWER_SECONDS_MAX, Stack
from tools.bad_input_pack import MIB, good_client, memory_below, send_all, send_schemas

# More than the engine keeps compiled, so that what follows makes one go for each that comes.
WARM_UP = 300
SCHEMAS = 200
GROWTH_MAX = 48 * MIB
WORKER_MAX = 256 * MIB


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=ANSWER_SECONDS_MAX) as api:
        yield api


@pytest.fixture(autouse=True)
def the_engine_stays(stack: Stack) -> Iterator[None]:
    engine = stack.engine()
    yield
    assert stack.engine().pid == engine.pid and engine.is_running()
    assert stack.answers()


@pytest.mark.parametrize("group", BOMBS)
async def test_a_bomb_is_refused_by_its_field_before_a_stream_begins(
    api: httpx.AsyncClient, model: str, group: str
) -> None:
    async with good_client(api, model) as good:
        answers = await send_all(api, model, BOMBS[group], streams=(True,))
    for answer in answers:
        assert answer.is_refused, (str(answer.bad.change)[:200], answer.status, answer.text[:300])
        assert len(answer.text) < 1000, "a short request's worth of words about a long one"
    assert good.is_unharmed, good.wrong


@pytest.mark.parametrize("group", HARD)
async def test_a_hard_language_is_followed_or_refused(
    api: httpx.AsyncClient, model: str, group: str
) -> None:
    async with good_client(api, model) as good:
        answers = await send_all(api, model, HARD[group], streams=(True,))
    for answer in answers:
        is_fine = answer.is_answered or answer.is_refused
        assert is_fine, (str(answer.bad.change)[:200], answer.status, answer.text[:300])
    assert good.is_unharmed, good.wrong


async def test_a_language_that_grows_too_far_ends_only_its_own_answer(
    api: httpx.AsyncClient, model: str
) -> None:
    async with good_client(api, model) as good:
        answers = await send_all(api, model, LATE, streams=(False, True))
    for answer in answers:
        is_told = '"error"' in answer.text and "grammar" in answer.text
        assert is_told or answer.is_answered, (answer.status, answer.text[:300])
    assert good.is_unharmed, good.wrong


async def test_schemas_that_never_come_twice_leave_nothing_behind(
    api: httpx.AsyncClient, stack: Stack, model: str
) -> None:
    root = psutil.Process(stack.pid_of("task_executor"))
    async with good_client(api, model) as good:
        answers = await send_schemas(api, model, range(WARM_UP), concurrency=16)
        before = memory_below(root)
        indexes = range(WARM_UP, WARM_UP + SCHEMAS)
        answers += await send_schemas(api, model, indexes, concurrency=16)
        after = memory_below(root)
    assert {status for status, _ in answers} == {200}
    assert after.engine_bytes - before.engine_bytes < GROWTH_MAX
    assert after.workers == 1 and after.worker_bytes < WORKER_MAX
    assert good.is_unharmed, good.wrong
