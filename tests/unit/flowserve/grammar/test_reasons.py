"""What a compiler says in listings is one line about what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.task_executor.flowserve.grammar.reasons import (
    NO_ANSWER,
    REASON_CHARACTERS_MAX,
    UNSAID,
    reason_of,
)

LISTING = '   1 | start: "x" a\n   2 | a: %json {"type": "nope"}\n          ^\n'
PARSE_ERROR = "regex parse error:\n    (\n    ^\nerror: unclosed group"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Invalid type: nope", "Invalid type: nope"),
        (f"at 2(4): failed to compile JSON schema: too large\n{LISTING}", "too large"),
        (PARSE_ERROR, "unclosed group"),
        (f'at 1(8): invalid regex "(" (in regex): {PARSE_ERROR}\n{LISTING}', "unclosed group"),
        (f'at 1(8): invalid regex "a{{9}}" (in regex): too large\n{LISTING}', "too large"),
        (f'at 1(8): unknown name: "nothing"\n{LISTING}', 'unknown name: "nothing"'),
        ("1(9): Expected token ')'\n   1 | start: (\n", "Expected token ')'"),
        ("NoExtensionBias\n<non-verbose/>", NO_ANSWER),
        ("", NO_ANSWER),
        ("at 1(8): ", UNSAID),
        ("x" * 1000, "x" * (REASON_CHARACTERS_MAX - 1) + "…"),
    ],
)  # fmt: skip
def test_the_reason_is_what_is_wrong(text: str, reason: str) -> None:
    assert reason_of(text) == reason


@given(st.text())
def test_a_reason_is_one_short_line(text: str) -> None:
    reason = reason_of(text)
    assert 0 < len(reason) <= REASON_CHARACTERS_MAX and len(reason.splitlines()) == 1
