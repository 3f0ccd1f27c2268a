import pytest

from deepflow import errors
from deepflow.rpc import status_of
from deepflow.v1 import types_pb2 as types

ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.DeepFlowError)
    and kind is not errors.DeepFlowError
]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_the_wire(kind: type[errors.DeepFlowError]) -> None:
    sent = kind("what and why", param="messages[0]", reason="because", retry_after_seconds=1.5)
    received = errors.from_proto(types.Error.FromString(errors.to_proto(sent).SerializeToString()))
    assert type(received) is kind
    assert vars(received) == vars(sent)


def test_every_code_has_one_class_and_one_status() -> None:
    codes = {kind.code for kind in ALL}
    assert codes == set(types.ErrorCode.values()) - {types.ERROR_CODE_UNSPECIFIED}
    assert len({status_of(kind("x")) for kind in ALL}) == len(ALL)


def test_an_unknown_code_is_our_fault() -> None:
    assert type(errors.from_proto(types.Error(code=99, message="?"))) is errors.Internal  # type: ignore[arg-type]


def test_the_openai_shape() -> None:
    error = errors.NotFound("no such model", param="model", reason="model_not_found")
    assert errors.openai_error(error) == {
        "error": {
            "message": "no such model",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
