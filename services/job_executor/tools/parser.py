"""An answer read as it comes: text and calls. Where its pieces are cut makes no difference."""

from services.job_executor.tools.call_object import CallObject
from services.job_executor.tools.events import Arguments, CallBegan, CallEnded, Event, Text

# Of a call that has not said its name yet; a longer one is text.
HELD_CHARACTERS_MAX = 64 * 1024


class CallParser:
    """The part that all formats share: the object of a call, and what turned out to be none.

    A format says where objects may begin and what may follow them. A call that breaks before its
    name and the beginning of its arguments were seen is text after all.
    """

    __slots__ = ("_buffer", "_events", "_has_begun", "_held", "_num_calls", "_object")

    def __init__(self) -> None:
        self._buffer = ""  # not looked at yet, or not decided
        self._events: list[Event] = []
        self._num_calls = 0
        self._object: CallObject | None = None  # of the call under way
        self._held = ""  # that call as written, with its tag, until it has begun for the client
        self._has_begun = False

    def push(self, text: str) -> list[Event]:
        self._buffer += text
        self._run()
        return self._take_events()

    def flush(self) -> list[Event]:
        """The answer is over: what was held back is text, or part of a call that ends here."""
        self._run()
        while self._object is not None:
            self._leave(self._object)
            self._run()  # text that was held for a call may hold another one
        self._text(self._rest())
        self._buffer = ""
        return self._take_events()

    # ── what a format says ───────────────────────────────────────────────────────────────────

    def _outside(self) -> bool:
        """Read on where no object is under way; False: more of the answer must come first."""
        raise NotImplementedError

    def _refused(self, held: str) -> None:
        """An object was none; `held` is everything from its tag up to the buffer."""
        raise NotImplementedError

    def _after(self) -> None:
        """A call is over, for better or worse; the buffer goes on behind it."""
        raise NotImplementedError

    def _rest(self) -> str:
        """What of the undecided buffer is text, now that nothing follows."""
        raise NotImplementedError

    def _accepts(self, name: str) -> bool:
        """Whether an object of this name is a call."""
        raise NotImplementedError

    def _may_lack_arguments(self) -> bool:
        raise NotImplementedError

    # ── what they share ──────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while self._buffer:
            if self._object is not None:
                self._inside(self._object)
            elif not self._outside():
                return

    def _begin_object(self, held: str) -> None:
        self._object, self._held, self._has_begun = CallObject(), held, False

    def _inside(self, call: CallObject) -> None:
        # Bounded here, so that the bound too falls on the same character however it is cut.
        room = len(self._buffer) if self._has_begun else HELD_CHARACTERS_MAX - len(self._held)
        length = call.push(self._buffer[:room])
        read, self._buffer = self._buffer[:length], self._buffer[length:]
        if not self._has_begun:
            self._held += read
            if call.name and call.has_arguments and self._accepts(call.name):
                self._begin_call(call.name)
        if self._has_begun:
            self._arguments(call.take_arguments())
        if call.is_complete or call.is_broken or self._is_hopeless(call):
            self._leave(call)

    def _is_hopeless(self, call: CallObject) -> bool:
        if self._has_begun:
            return False
        is_of_nobody = bool(call.name) and not self._accepts(call.name)
        return is_of_nobody or len(self._held) >= HELD_CHARACTERS_MAX

    def _leave(self, call: CallObject) -> None:
        """Its object is over, or nothing follows."""
        self._object = None
        is_bare = call.is_complete and not call.has_arguments and self._accepts(call.name)
        if is_bare and self._may_lack_arguments():
            self._begin_call(call.name)
            self._arguments("{}")
        if not self._has_begun:
            held, self._held = self._held, ""
            self._refused(held)
            return
        is_whole = call.has_all_arguments or is_bare
        self._events.append(CallEnded(self._num_calls - 1, is_whole))
        self._after()

    def _begin_call(self, name: str) -> None:
        self._has_begun, self._held = True, ""
        self._events.append(CallBegan(self._num_calls, name))
        self._num_calls += 1

    def _arguments(self, text: str) -> None:
        if text:
            self._events.append(Arguments(self._num_calls - 1, text))

    def _text(self, text: str) -> None:
        if text:
            self._events.append(Text(text))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def undecided_from(text: str, word: str) -> int:
    """Where the longest end of `text` begins that may still become the word."""
    for start in range(max(0, len(text) - len(word) + 1), len(text)):
        if word.startswith(text[start:]):
            return start
    return len(text)


def leading_blanks(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]
