import pytest

from services.task_executor.flowserve.config import EngineConfig, EngineConfigError
from tests.unit.flowserve.harness import make_config


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("block_size", 0, "block_size is 0, but must be 1 or more"),
        ("kv_blocks", 1, "kv_blocks is 1, but must be 2 or more"),
        ("max_tokens", 1, "max_tokens is 1, but must be 2 or more"),
        ("max_sequences", 0, "max_sequences is 0, but must be 1 or more"),
        ("max_step_tokens", 3, "max_step_tokens is 3, but must be 4 or more"),
        ("max_waiting", 0, "max_waiting is 0, but must be 1 or more"),
        ("kv_blocks", 10, "lower max_tokens or raise kv_blocks to 11"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_right(
    field: str, value: int, expected: str
) -> None:
    with pytest.raises(EngineConfigError, match=expected):
        make_config(**{field: value})


def test_the_end_token_must_be_in_the_vocabulary() -> None:
    with pytest.raises(EngineConfigError, match="eos_token_ids holds 9"):
        EngineConfig(block_size=4, kv_blocks=9, max_tokens=8, vocab_size=9, eos_token_ids=(9,))


def test_the_seed_of_identities_carries_the_salt() -> None:
    config = make_config()
    assert config.identity_seed(b"a").root() != config.identity_seed(b"b").root()
    assert config.identity_seed(b"a").block_size == config.block_size
