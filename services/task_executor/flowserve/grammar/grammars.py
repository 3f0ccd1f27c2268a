"""The grammars of one engine: proved, compiled and kept, beside the step loop."""

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, NamedTuple

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.prototypes import Prototypes
from services.task_executor.flowserve.grammar.proving import Prover, WorkerLost
from services.task_executor.flowserve.grammar.sources import GrammarError
from services.task_executor.flowserve.grammar.static_checks import check_size
from services.task_executor.flowserve.grammar.vocabulary import (
    Vocabulary,
    VocabularyFacts,
    raise_error_of,
)
from services.task_executor.flowserve.grammar.waiting import WaitingGrammars
from services.task_executor.flowserve.grammar.worker import FAILED
from services.task_executor.flowserve.messages import GrammarDone

if TYPE_CHECKING:
    from llguidance import LLMatcher

log = logging.getLogger(__name__)

NO_VOCABULARY = "this model's tokenizer cannot be used for structured output"
CLOSE_SECONDS = 10.0


class Outcome(NamedTuple):
    """What became of a grammar; without a fault it is ready."""

    fault: str = ""
    is_invalid: bool = True  # the grammar is at fault, not the engine
    part: int | None = None  # the schema inside it that is, where it is one of them


class Grammars:
    """`prepare` and the rest are the engine's thread's; one thread of its own compiles.

    What is compiled here was compiled by a worker process before, within its limits.
    """

    def __init__(self, facts: VocabularyFacts) -> None:
        self._facts = facts
        self._prototypes = Prototypes()
        self._faults: OrderedDict[Grammar, Outcome] = OrderedDict()
        self._in_flight: set[Grammar] = set()
        self._waiting = WaitingGrammars()
        self._done: deque[tuple[Grammar, LLMatcher | None, Outcome]] = deque()
        self._timings: deque[GrammarDone] = deque(maxlen=limits.TIMINGS_KEPT_MAX)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._prover = Prover(facts)
        self._vocabulary: Vocabulary | None = None
        self._thread = threading.Thread(target=self._work, name="grammars", daemon=True)
        self._is_started = False
        self._is_closed = False

    def fileno(self) -> int:
        """Readable when `take_done` has something."""
        return self._wake_fd

    @property
    def num_kept(self) -> int:
        return len(self._prototypes)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_workers_started(self) -> int:
        return self._prover.num_starts

    @property
    def worker_pid(self) -> int | None:
        return self._prover.pid

    @property
    def mask_words(self) -> int:
        """Of 32 tokens each: the length of the masks that the matchers fill."""
        return self._read_vocabulary.mask_words

    def read_vocabulary(self) -> None:
        """Before the first step: it holds the interpreter. What is wrong is told on use."""
        try:
            self._vocabulary = Vocabulary(self._facts)
        except (GrammarError, ImportError) as error:
            log.warning("no structured output: %s", error)

    def prepare(self, grammar: Grammar, source: bytes) -> bool:
        """Whether it is ready; otherwise `take_done` names it later.

        `source` is whose it is: sources take turns. Raises GrammarError or GrammarsBusy.
        """
        if self._prototypes.find(grammar) is not None:
            return True
        if (known := self._faults.get(grammar)) is not None:
            raise GrammarError(known.fault, known.part)
        if self._vocabulary is None:
            raise GrammarError(NO_VOCABULARY)
        if grammar in self._in_flight:
            self._waiting.hurry(source, grammar)
            return False
        check_size(grammar)
        self._waiting.put(source, grammar)
        self._in_flight.add(grammar)
        self._start()
        return False

    def forgo(self, grammar: Grammar) -> None:
        """Nobody waits for it any more; what is being compiled already is compiled to its end."""
        if self._waiting.drop(grammar):
            self._in_flight.discard(grammar)

    def take_done(self) -> dict[Grammar, Outcome]:
        """What became of the grammars that `prepare` did not find ready."""
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            return {}
        done = {}
        while self._done:
            grammar, matcher, outcome = self._done.popleft()
            self._in_flight.discard(grammar)
            done[grammar] = outcome
            if matcher is not None:
                self._prototypes.keep(grammar, matcher)
            elif outcome.is_invalid:
                self._remember(grammar, outcome)
        return done

    def take_timings(self) -> list[GrammarDone]:
        """How long the grammars took that were compiled since the last call."""
        return [self._timings.popleft() for _ in range(len(self._timings))]

    def pin(self, handle: int, grammar: Grammar) -> None:
        """Keep it ready until this sequence has ended. Raises GrammarsBusy."""
        self._prototypes.pin(handle, grammar)

    def unpin(self, handle: int) -> None:
        self._prototypes.unpin(handle)

    def matcher(self, grammar: Grammar) -> "LLMatcher":
        """One of one's own, at the beginning."""
        prototype = self._prototypes.find(grammar)
        if prototype is None:  # not pinned, and it had to make room; compiling it was quick
            prototype = self._read_vocabulary.compile(grammar)
            self._prototypes.keep(grammar, prototype)
        return prototype.deep_copy()

    def is_complete(self, grammar: Grammar, answer_token_ids: list[int]) -> bool:
        """Whether nothing may follow this answer. Raises GrammarError where it does not fit."""
        matcher = self.matcher(grammar)
        matcher.consume_tokens(answer_token_ids)
        raise_error_of(matcher)
        return matcher.is_stopped()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._waiting.close()
        if self._is_started:
            self._prover.interrupt()
            self._thread.join(CLOSE_SECONDS)
        os.close(self._wake_fd)

    @property
    def _read_vocabulary(self) -> Vocabulary:
        assert self._vocabulary is not None, "no grammar is ready without a vocabulary"
        return self._vocabulary

    def _remember(self, grammar: Grammar, outcome: Outcome) -> None:
        """So that asking again costs nothing."""
        self._faults[grammar] = outcome
        if len(self._faults) > limits.FAULTS_KEPT_MAX:
            self._faults.popitem(last=False)

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._thread.start()

    # The compiling thread

    def _work(self) -> None:
        try:
            while (grammar := self._waiting.take()) is not None:
                started = time.monotonic()
                matcher, outcome = self._compile(grammar)
                seconds = time.monotonic() - started
                self._timings.append(GrammarDone(seconds, is_good=not outcome.fault))
                self._done.append((grammar, matcher, outcome))
                if not self._is_closed:
                    os.eventfd_write(self._wake_fd, 1)
        finally:
            self._prover.close()

    def _compile(self, grammar: Grammar) -> "tuple[LLMatcher | None, Outcome]":
        try:
            self._prover.prove(grammar)
            return self._read_vocabulary.compile(grammar), Outcome()
        except GrammarError as error:
            return None, Outcome(str(error), part=error.part)
        except WorkerLost as error:
            return None, Outcome(str(error), is_invalid=False)
        except BaseException as error:  # one grammar must not end the thread that all others need
            log.exception("a grammar could not be compiled", exc_info=error)
            return None, Outcome(FAILED, is_invalid=False)
