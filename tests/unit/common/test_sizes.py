import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.sizes import (
    GIB,
    MIB,
    format_at_least,
    format_at_most,
    format_bytes,
    parse_bytes,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 * GIB),
        ("1.5 gib", GIB + GIB // 2),
        ("512MiB", 512 * MIB),
        ("2GB", 2 * 10**9),
        ("3g", 3 * 10**9),
        ("100", 100),
    ],
)
def test_amounts_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "2 potatoes", "1,5GiB", "nan"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write 2GiB"):
        parse_bytes(text)


def test_a_refusal_is_a_sentence_however_long_what_was_written() -> None:
    with pytest.raises(ValueError, match="write 2GiB") as refused:
        parse_bytes("9" * 5000)
    assert len(str(refused.value)) < 200


@given(st.integers(0, 2**60))
def test_what_is_shown_can_be_read_back_within_its_digits(count: int) -> None:
    shown = parse_bytes(format_bytes(count).replace(" bytes", "B"))
    assert abs(shown - count) <= max(1, count * 0.006)


def read_back(shown: str) -> int:
    return parse_bytes(shown.replace(" bytes", "B"))


@given(st.integers(0, 2**60))
def test_a_bound_that_is_shown_can_be_relied_on(count: int) -> None:
    assert read_back(format_at_most(count)) <= count
    # Read back, a fraction of a byte is cut.
    assert read_back(format_at_least(count)) >= count - 1
