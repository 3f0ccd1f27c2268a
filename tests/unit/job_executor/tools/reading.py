"""An answer pushed in pieces, and what was read in it."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.job_executor.tools.events import Arguments, CallBegan, CallEnded, Event, Text
from services.job_executor.tools.parser import CallParser


@dataclass
class Read:
    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)  # name, arguments
    complete: list[bool] = field(default_factory=list)
    order: list[str] = field(default_factory=list)  # what came after what


def read(parser: CallParser, pieces: Iterable[str]) -> Read:
    events = [event for piece in pieces for event in parser.push(piece)]
    return collect([*events, *parser.flush()])


def collect(events: list[Event]) -> Read:
    found = Read()
    for event in events:
        match event:
            case Text(text):
                assert text
                found.text += text
            case CallBegan(index, name):
                assert index == len(found.calls) == len(found.complete)
                found.calls.append((name, ""))
            case Arguments(index, text):
                assert text and index == len(found.calls) - 1 == len(found.complete)
                name, before = found.calls[index]
                found.calls[index] = (name, before + text)
            case CallEnded(index, is_complete):
                assert index == len(found.complete)
                found.complete.append(is_complete)
        kind = type(event).__name__
        if found.order[-1:] != [kind]:
            found.order.append(kind)
    return found


def cut(text: str, places: Iterable[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]
