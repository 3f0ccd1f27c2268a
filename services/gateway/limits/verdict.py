"""What a limit says to one request."""

import enum


class Verdict(enum.Enum):
    ADMIT = "admit"
    REFUSE = "refuse"
    # What is in hand does not do; the store may have more.
    ASK = "ask"


def strictest(*verdicts: Verdict) -> Verdict:
    for verdict in (Verdict.REFUSE, Verdict.ASK):
        if verdict in verdicts:
            return verdict
    return Verdict.ADMIT
