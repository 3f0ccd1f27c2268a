"""The calls in one choice's answer, on their way to the gateway."""

import secrets
from collections.abc import Collection, Mapping

from deepflow.v1 import jobs_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.tokenizer.detokenizer import Detokenizer
from services.job_executor.tools.events import Arguments, CallBegan, CallEnded, Event, Text
from services.job_executor.tools.parser import CallParser

ID_BYTES = 12


class AnswerCalls:
    """Takes calls out of the text of one choice, and keeps them until their tokens may leave."""

    __slots__ = (
        "_choice_index",
        "_deltas",
        "_handle",
        "_is_forced",
        "_num_complete",
        "_parser",
        "_stops_after_call",
        "_tells_calls",
    )

    def __init__(
        self,
        parser: CallParser,
        *,
        handle: int,
        choice_index: int,
        stops_after_call: bool,
        tells_calls: bool = True,
        is_forced: bool = False,
    ) -> None:
        """`is_forced`: a grammar sees to it that there is nothing but calls."""
        self._parser = parser
        self._handle, self._choice_index = handle, choice_index
        self._stops_after_call = stops_after_call
        self._tells_calls = tells_calls
        self._is_forced = is_forced
        self._num_complete = 0
        # With the index of the token that brought it; of one call, adjacent pieces are merged.
        self._deltas: list[tuple[int, jobs_pb2.ToolCallDelta]] = []

    def reason(self, reason: types.FinishReason.ValueType) -> types.FinishReason.ValueType:
        """Why an answer ended that would otherwise have ended for `reason`."""
        is_call = reason == types.FINISH_REASON_STOP and self._num_complete > 0
        return types.FINISH_REASON_TOOL_CALLS if is_call and self._tells_calls else reason

    @property
    def is_over(self) -> bool:
        """Only one call was wanted, and it is there."""
        return self._stops_after_call and self._num_complete > 0

    def push(self, text: str, token_index: int) -> str:
        """What of the text is none of a call. Once `is_over`, nothing more comes out."""
        if self.is_over or not text:
            return ""
        return self._sort(self._parser.push(text), token_index)

    def flush(self, token_index: int) -> str:
        return "" if self.is_over else self._sort(self._parser.flush(), token_index)

    def take(self, end: int) -> list[jobs_pb2.ToolCallDelta]:
        """The pieces that came with tokens before `end`, in order."""
        count = 0
        while count < len(self._deltas) and self._deltas[count][0] < end:
            count += 1
        taken, self._deltas = self._deltas[:count], self._deltas[count:]
        return _merged([delta for _, delta in taken])

    def drop(self) -> None:
        """Somebody has these pieces already, or nobody wants them."""
        self._deltas.clear()

    def _sort(self, events: list[Event], token_index: int) -> str:
        text = ""
        for event in events:
            match event:
                case Text():
                    # Of an answer of calls only the beginning of one that was cut is text.
                    text += "" if self._is_forced else event.text
                case CallBegan():
                    self._add(token_index, event.index, id=_new_id(), name=event.name)
                case Arguments():
                    self._add(token_index, event.index, arguments=event.text)
                case CallEnded():
                    self._num_complete += event.is_complete
                    if self.is_over:
                        return text
        return text

    def _add(self, token_index: int, call_index: int, **piece: str) -> None:
        delta = jobs_pb2.ToolCallDelta(
            handle=self._handle, choice_index=self._choice_index, call_index=call_index, **piece
        )
        self._deltas.append((token_index, delta))


class TagDetokenizer:
    """Another one, but that some tokens show their names, whatever they stand for elsewhere."""

    __slots__ = ("_inner", "_tags")

    def __init__(self, inner: Detokenizer, tags: Mapping[int, str]) -> None:
        self._inner = inner
        self._tags = tags

    def push(self, token_id: int) -> str:
        tag = self._tags.get(token_id)
        return self._inner.push(token_id) if tag is None else self._inner.flush() + tag

    def flush(self) -> str:
        return self._inner.flush()


def _merged(deltas: Collection[jobs_pb2.ToolCallDelta]) -> list[jobs_pb2.ToolCallDelta]:
    merged: list[jobs_pb2.ToolCallDelta] = []
    for delta in deltas:
        if merged and merged[-1].call_index == delta.call_index:
            merged[-1].arguments += delta.arguments
        else:
            merged.append(delta)
    return merged


def _new_id() -> str:
    return f"call_{secrets.token_hex(ID_BYTES)}"
