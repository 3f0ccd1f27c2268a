"""Our own share of something: its answer, its error, or at once what makes it pointless."""

import threading

import pytest

from services.task_executor.flowserve.ranks.beside import Beside


def nothing() -> None:
    pass


def test_it_answers() -> None:
    assert Beside(lambda: 7).result(nothing) == 7


def test_its_error_is_ours() -> None:
    def fail() -> None:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        Beside(fail).result(nothing)


def test_what_waits_for_somebody_who_is_gone_is_left_alone() -> None:
    end = threading.Event()

    def refuse() -> None:
        raise RuntimeError("rank 1 died")

    share = Beside(end.wait)
    with pytest.raises(RuntimeError, match="rank 1 died"):
        share.result(refuse)
    end.set()
    share.finish()
    assert share.result(refuse) is True
