"""Computes the masks of many rows: side by side where that pays, one by one where one is slow."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from services.task_executor.flowserve.grammar import limits

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

ROWS_FOR_THREADS = 8
CPUS_FOR_THREADS = 4
CPUS_TAKEN_MAX = 8


class MaskFiller:
    def __init__(self, words: int, cpus: int | None = None) -> None:
        """`words` of 32 tokens each, in the masks of these matchers; usually all CPUs help."""
        self._bits = np.zeros((0, words), dtype=np.int32)
        self._threads: LLExecutor | None = None
        self._cpus = cpus or len(os.sched_getaffinity(0))
        self._was_slow = False

    def fill(self, matchers: "Sequence[LLMatcher]") -> tuple[npt.NDArray[np.int32], list[int]]:
        """A mask for each, good until the next call, and whose took too much computing time.

        A matcher that gives up has an error afterwards, and a mask without meaning.
        """
        if len(matchers) > len(self._bits):
            self._bits = np.zeros((len(matchers), self._bits.shape[1]), dtype=np.int32)
        slow: list[int] = []
        is_alone = self._cpus < CPUS_FOR_THREADS or len(matchers) < ROWS_FOR_THREADS
        if is_alone or self._was_slow:
            slow = [i for i, matcher in enumerate(matchers) if self._is_slow(matcher, i)]
            self._was_slow = bool(slow)
        else:
            began = time.perf_counter()
            self._fill_together(matchers)
            # Who it was shows in the next step, one by one.
            self._was_slow = time.perf_counter() - began > limits.SLOW_MASK_SECONDS
        return self._bits[: len(matchers)], slow

    def _is_slow(self, matcher: "LLMatcher", index: int) -> bool:
        line = self._bits[index]
        began = time.thread_time()
        matcher.unsafe_compute_mask_ptr(line.ctypes.data, line.nbytes)
        return time.thread_time() - began > limits.SLOW_MASK_SECONDS

    def _fill_together(self, matchers: "Sequence[LLMatcher]") -> None:
        from llguidance import LLExecutor

        if self._threads is None:
            self._threads = LLExecutor(num_threads=min(self._cpus // 2, CPUS_TAKEN_MAX))
        pairs = [(matcher, index) for index, matcher in enumerate(matchers)]
        self._threads.unsafe_compute_mask_ptr(
            pairs, self._bits.ctypes.data, self._bits.strides[0], len(matchers)
        )
