"""What an answer turns out to be, piece by piece."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of what is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """Call `index` of this answer; the pieces of its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the JSON text of a call's arguments, as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """Nothing more belongs to the call; complete where its arguments are."""

    index: int
    is_complete: bool


Event = Text | CallBegan | Arguments | CallEnded
