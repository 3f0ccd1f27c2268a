"""Which rank hangs: decided from what looks at all of them show.

A rank that works, or was told something, owes a sign. One that waits in a collective owes none as
long as somebody else may still come; where nobody is left who could, it hangs there.

Only time counts in which a rank could have run: not what other programs took from it, nor what it
waited for a disk. Looks are counted rather than seconds, so that an engine that was stopped itself
does not blame its ranks for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.task_executor.flowserve.marks import Doing, Mark

LOOK_SECONDS = 0.1
# No look stands for more time than this, however late it came.
LOOK_SECONDS_MAX = 0.3
# No silence shorter than this is a hang: a step of another shape, a pause of the interpreter.
SILENCE_SECONDS_MIN = 1.0
# Beyond the longest stretch that plans of this weight have had.
SILENCE_FACTOR = 20
# Where nobody knows how long it takes, and for all that is excused otherwise.
SLOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a rank shows."""

    mark: Mark
    is_told: bool = False  # something that it has not read
    passed_seconds: float = LOOK_SECONDS  # since the look before
    excused_seconds: float = 0.0  # of these
    has_computed: bool = True  # in them

    @property
    def is_waiting(self) -> bool:
        """For somebody else, who owes a sign instead."""
        return self.is_idle or self.mark.doing is Doing.MEETING

    @property
    def is_idle(self) -> bool:
        return self.mark.doing is Doing.RESTING and not self.is_told


@dataclass(frozen=True, slots=True)
class Silence:
    """How long a rank has given no sign."""

    mark: Mark
    seconds: float = 0.0
    unexcused_seconds: float = 0.0

    def after(self, look: Look) -> "Silence":
        if look.mark != self.mark or _owes_nothing(look):
            return Silence(look.mark)
        passed = min(look.passed_seconds, LOOK_SECONDS_MAX)
        unexcused = max(0.0, passed - look.excused_seconds)
        return Silence(look.mark, self.seconds + passed, self.unexcused_seconds + unexcused)

    @property
    def is_too_long(self) -> bool:
        allowed = allowed_seconds(self.mark)
        return self.unexcused_seconds > allowed or self.seconds > max(allowed, SLOW_SECONDS)


@dataclass(frozen=True, slots=True)
class Verdict:
    rank: int
    seconds: float
    doing: str


def judge(silences: Sequence[Silence], looks: Sequence[Look]) -> Verdict | None:
    """By rank, from 0. Of several the one that stood still first: the others wait for it."""
    ranks = range(len(looks))
    guilty = [it for it in ranks if silences[it].is_too_long and not looks[it].is_waiting]
    if not guilty and all(look.is_waiting for look in looks):
        meeting = [it for it in ranks if looks[it].mark.doing is Doing.MEETING]
        if all(silences[it].is_too_long for it in meeting):
            guilty = meeting
    if not guilty:
        return None
    first = min(guilty, key=lambda it: looks[it].mark.since_ns)
    return Verdict(first, silences[first].seconds, looks[first].mark.doing.name.lower())


def allowed_seconds(mark: Mark) -> float:
    if mark.doing is Doing.RESTING:
        return SILENCE_SECONDS_MIN
    if mark.doing is Doing.LOADING or not mark.expected_seconds:
        return SLOW_SECONDS
    return max(SILENCE_SECONDS_MIN, SILENCE_FACTOR * mark.expected_seconds)


def _owes_nothing(look: Look) -> bool:
    """Weights take minutes, and show by the CPU time that it costs to read them."""
    if look.mark.doing is Doing.LOADING:
        return look.has_computed
    return look.is_idle
