"""Names of records: what is allowed, and which bounds hold a prefix."""

import pytest

from deepflow.errors import InvalidRequest
from services.kv_store.records import keys
from services.kv_store.records.records import Fence


@pytest.mark.parametrize("key", ["a", "deployments/demo", "cluster/view", "org/model:v1.0_x-y@z"])
def test_a_plain_name_is_taken(key: str) -> None:
    assert keys.check_key(key) == key


@pytest.mark.parametrize("key", ["", "white space", "new\nline", "ä", "star*", "x" * 257, "\x00"])
def test_anything_else_is_refused_by_field(key: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        keys.check_key(key)
    assert refusal.value.param == "key"


def test_the_empty_prefix_spans_everything() -> None:
    assert keys.check_prefix("") == ""
    assert keys.lex_range("") == ("-", b"+")
    assert keys.lex_range("a/") == ("[a/", b"[a/\xff")


def test_a_token_without_its_lease_is_a_mistake() -> None:
    with pytest.raises(InvalidRequest):
        Fence("", 3)
    with pytest.raises(InvalidRequest):
        Fence("no lease", 3)
