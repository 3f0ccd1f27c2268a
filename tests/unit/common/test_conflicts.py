"""Many who change one thing at a time, each on the condition that nobody else has."""

import asyncio

import pytest

from deepflow.conflicts import ATTEMPTS_MAX, on_the_newest
from deepflow.errors import Conflict, NotFound


class Record:
    """As a store keeps one: written only on the version that was read."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.conflicts = 0

    async def add(self, value: int) -> int:
        version = len(self.values)
        await asyncio.sleep(0)  # where others come in between
        if len(self.values) != version:
            self.conflicts += 1
            raise Conflict("somebody else was quicker")
        self.values.append(value)
        return version


async def test_ten_writers_all_get_through() -> None:
    record = Record()
    writers = (on_the_newest(lambda it=it: record.add(it)) for it in range(10))  # type: ignore[misc]
    versions = await asyncio.gather(*writers)
    assert sorted(versions) == list(range(10)) == sorted(record.values)
    assert record.conflicts, "the test says nothing"


async def test_it_gives_up_after_a_number_of_attempts() -> None:
    attempts = 0

    async def lose() -> None:
        nonlocal attempts
        attempts += 1
        raise Conflict("always")

    with pytest.raises(Conflict):
        await on_the_newest(lose)
    assert attempts == ATTEMPTS_MAX


async def test_other_errors_are_nobody_elses_doing() -> None:
    attempts = 0

    async def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise NotFound("nothing is there")

    with pytest.raises(NotFound):
        await on_the_newest(fail)
    assert attempts == 1
