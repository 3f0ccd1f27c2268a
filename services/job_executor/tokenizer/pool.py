"""Threads for templates and long texts, with a bound on what waits and on how long it takes."""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from deepflow.errors import InvalidRequest, Unavailable

RETRY_SECONDS = 1.0

T = TypeVar("T")


class _Interrupted(BaseException):
    """Raised inside a piece of work whose time is over; no template may catch it."""


class WorkPool:
    """Runs small pieces of work off the event loop."""

    def __init__(self, *, threads: int, queue_max: int, seconds_max: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")
        self._pending_max = threads + queue_max
        self._seconds_max = seconds_max
        self._num_pending = 0

    @property
    def num_pending(self) -> int:
        return self._num_pending

    async def run(self, work: Callable[[], T], *, param: str = "") -> T:
        """Raises Unavailable where too much waits, InvalidRequest where the work takes too long.

        `param` is the request's field that the work is about.
        """
        if self._num_pending >= self._pending_max:
            raise Unavailable(
                f"{self._num_pending} prompts wait to be tokenized here already",
                reason="tokenizer_queue_full",
                retry_after_seconds=RETRY_SECONDS,
            )
        item = _Work(work)
        self._num_pending += 1
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, item)
            return await asyncio.wait_for(future, self._seconds_max)
        except TimeoutError as error:
            raise self._too_long(param, was_running=item.interrupt()) from error
        finally:
            self._num_pending -= 1

    def load(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """A piece of work of our own, without limits."""
        return asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _too_long(self, param: str, *, was_running: bool) -> InvalidRequest | Unavailable:
        if was_running:
            return InvalidRequest(
                f"rendering and tokenizing this prompt took over {self._seconds_max:g} s; "
                "send a shorter one",
                param=param,
                reason="prompt_timeout",
            )
        return Unavailable(
            "the prompt could not be tokenized in time",
            reason="tokenizer_queue_full",
            retry_after_seconds=RETRY_SECONDS,
        )


class _Work(Generic[T]):
    """One piece of work that another thread may interrupt while its Python code runs."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._lock = threading.Lock()  # an interrupt must hit this work, never the next one
        self._thread: int | None = None
        self._is_over = False

    def __call__(self) -> T:
        with self._lock:
            if self._is_over:
                raise _Interrupted
            self._thread = threading.get_ident()
        try:
            return self._work()
        finally:
            with self._lock:
                self._thread = None

    def interrupt(self) -> bool:
        """Answers whether the work was running."""
        with self._lock:
            self._is_over = True
            if self._thread is None:
                return False
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), ctypes.py_object(_Interrupted)
            )
            return True
