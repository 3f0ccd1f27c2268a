"""What tenants, labels and limits may be; one rule for the command and for HTTP."""

import re
from collections.abc import Sequence

from deepflow.errors import InvalidRequest
from deepflow.v1 import access_pb2

DEFAULT_TENANT = "default"
LABEL_CHARACTERS_MAX = 128
MODELS_MAX = 64
MODEL_CHARACTERS_MAX = 256
TOKENS_MAX = 2**40
REQUESTS_MAX = 2**31
# A tenant without a weight has 1.
WEIGHT_DEFAULT = 1.0
WEIGHT_MIN, WEIGHT_MAX = 0.01, 100.0

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_tenant_name(name: str, param: str = "tenant") -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{param} {name[:64]!r} must be 1 to 64 letters, digits or . _ -", param=param
        )
    return name


def check_label(label: str) -> str:
    if len(label) > LABEL_CHARACTERS_MAX or not label.isprintable():
        raise InvalidRequest(
            f"label must be at most {LABEL_CHARACTERS_MAX} printable characters", param="label"
        )
    return label


def check_tenant(tenant: access_pb2.Tenant) -> access_pb2.Tenant:
    check_tenant_name(tenant.name)
    _check_limit(tenant.requests_per_minute, REQUESTS_MAX, "requests_per_minute")
    _check_limit(tenant.tokens_per_minute, TOKENS_MAX, "tokens_per_minute")
    _check_limit(tenant.concurrent_requests, REQUESTS_MAX, "concurrent_requests")
    _check_models(tenant.allowed_models)
    if tenant.weight:  # 0 = none was given
        check_weight(tenant.weight)
    return tenant


def check_weight(weight: float) -> float:
    """Also false for what is no number at all."""
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise InvalidRequest(
            f"weight must be from {WEIGHT_MIN:g} to {WEIGHT_MAX:g}, not {weight:g}", param="weight"
        )
    return weight


def _check_limit(value: int, maximum: int, param: str) -> None:
    if not 0 <= value <= maximum:
        raise InvalidRequest(f"{param} must be from 0 (no limit) to {maximum}", param=param)


def _check_models(models: Sequence[str]) -> None:
    if len(models) > MODELS_MAX:
        raise InvalidRequest(
            f"allowed_models has {len(models)} names; at most {MODELS_MAX}", param="allowed_models"
        )
    for index, model in enumerate(models):
        if not 0 < len(model) <= MODEL_CHARACTERS_MAX:
            raise InvalidRequest(
                f"allowed_models[{index}] must have 1 to {MODEL_CHARACTERS_MAX} characters",
                param=f"allowed_models[{index}]",
            )
