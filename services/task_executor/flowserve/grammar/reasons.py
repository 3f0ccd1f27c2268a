"""What the compiler of grammars says, as one line for the caller."""

import re

REASON_CHARACTERS_MAX = 200
NO_ANSWER = "it allows no answer"
UNSAID = "it does not compile"
_NON_VERBOSE = "<non-verbose/>"
# How it says that no token may come first.
_NOTHING_MAY_COME = "NoExtension"
_EXPRESSION_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)
# Where in the text that we made of the grammar: no place that the caller knows.
_PLACE = re.compile(r"^(?:at )?\d+\(\d+\): (?:failed to compile JSON schema: )?")
_IN_EXPRESSION = "(in regex): "


def reason_of(text: str) -> str:
    """Without listings of the grammar and places in it."""
    lines = text.replace(_NON_VERBOSE, "").lstrip()
    if not lines or lines.startswith(_NOTHING_MAY_COME):
        return NO_ANSWER
    if errors := _EXPRESSION_ERROR.findall(lines):
        reason = errors[-1]
    else:
        first = _PLACE.sub("", lines.splitlines()[0])
        reason = first.rpartition(_IN_EXPRESSION)[2] or first
    reason = " ".join(reason.split()) or UNSAID
    if len(reason) <= REASON_CHARACTERS_MAX:
        return reason
    return reason[: REASON_CHARACTERS_MAX - 1] + "…"
