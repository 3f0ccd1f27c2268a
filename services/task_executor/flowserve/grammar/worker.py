"""The process that compiles a grammar first: whatever a grammar does, it does it here.

It reads frames from its standard input and answers each with one: a Verdict.
The first frame is the vocabulary. A keeper reads it once and forks a hand that does the work under
limits; the kernel ends a hand that goes beyond them, the keeper answers in its place and forks
the next. So a grammar that is refused delays the others by a fork, not by a vocabulary.
"""

import os
import resource
import signal
import struct
import traceback
from pathlib import Path

import msgspec

from deepflow.core.bound import bind_to
from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.sources import (
    GrammarError,
    Verdict,
    embedded_schemas,
)
from services.task_executor.flowserve.grammar.static_checks import check
from services.task_executor.flowserve.grammar.vocabulary import Vocabulary, VocabularyFacts

NICENESS = 5
FAILED = "the grammar could not be compiled"
TOO_SLOW = (
    f"the grammar takes more than {limits.COMPILE_CPU_SECONDS * 1000:g} ms to compile; simplify it"
)
TOO_LARGE = "the grammar needs too much memory to be compiled; simplify it"
TOO_DEEP = "the grammar is nested too deeply to be compiled; simplify it"
# What a grammar can make of the hand that compiles it; any other death is not its fault.
VERDICTS = {
    signal.SIGPROF: TOO_SLOW,
    signal.SIGABRT: TOO_LARGE,
    signal.SIGSEGV: TOO_DEEP,
    signal.SIGBUS: TOO_DEEP,
}
_LENGTH = struct.Struct("<I")


def read_frame(fd: int) -> bytes:
    """Raises EOFError where the other side is gone."""
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size))
    return _read(fd, length)


def write_frame(fd: int, content: bytes) -> None:
    view = memoryview(_LENGTH.pack(len(content)) + content)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(fd, size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def main() -> None:
    inbox, outbox = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # a library that prints must not write into the answers
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        vocabulary = Vocabulary(msgspec.msgpack.decode(read_frame(inbox), type=VocabularyFacts))
    except EOFError:
        return
    except GrammarError as error:
        return _answer(outbox, Verdict(str(error)))
    _answer(outbox, Verdict())
    while (status := _lend_hand(vocabulary, inbox, outbox)) in VERDICTS:
        _answer(outbox, Verdict(VERDICTS[signal.Signals(status)]))


def _answer(outbox: int, verdict: Verdict) -> None:
    write_frame(outbox, msgspec.msgpack.encode(verdict))


def _lend_hand(vocabulary: Vocabulary, inbox: int, outbox: int) -> int:
    """Answers the number of the signal that ended it; 0 where it went by itself."""
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        bind_to(keeper)
        _limit_memory()
        try:
            _serve(vocabulary, inbox, outbox)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _serve(vocabulary: Vocabulary, inbox: int, outbox: int) -> None:
    while True:
        try:
            frame = read_frame(inbox)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, limits.COMPILE_CPU_SECONDS)
        verdict = _judge(vocabulary, msgspec.msgpack.decode(frame, type=Grammar))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(outbox, verdict)


def _judge(vocabulary: Vocabulary, grammar: Grammar) -> Verdict:
    try:
        check(grammar)
        _compile(vocabulary, grammar)
    except GrammarError as error:
        return Verdict(str(error), error.part)
    except MemoryError:
        return Verdict(TOO_LARGE)
    except BaseException:  # a panic of the library is no Exception
        traceback.print_exc()  # the engine's log gets it; to the caller it says nothing
        return Verdict(FAILED)
    return Verdict()


def _compile(vocabulary: Vocabulary, grammar: Grammar) -> None:
    """Once it has failed, each of its parts alone tells whether it is the one at fault."""
    try:
        vocabulary.compile(grammar)
    except GrammarError:
        for part, schema in embedded_schemas(grammar).items():
            try:
                vocabulary.compile(Grammar("json_schema", schema))
            except GrammarError as error:
                raise GrammarError(str(error), part) from error
        raise


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + limits.COMPILE_MEMORY_BYTES, hard))


if __name__ == "__main__":
    main()
