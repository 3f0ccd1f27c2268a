"""Who asks, once the door has let them in."""

from dataclasses import dataclass, field

from deepflow.access.names import DEFAULT_TENANT
from deepflow.errors import PermissionDenied
from deepflow.v1 import access_pb2


@dataclass(frozen=True, slots=True)
class Caller:
    """`key_id` is what usage is written to; a tenant without limits has them all at 0."""

    key_id: str
    tenant: access_pb2.Tenant = field(
        default_factory=lambda: access_pb2.Tenant(name=DEFAULT_TENANT)
    )
    is_admin: bool = False
    has_key: bool = True

    def may_use(self, model: str) -> bool:
        allowed = self.tenant.allowed_models
        return not allowed or model in allowed

    def require_model(self, model: str) -> None:
        if not self.may_use(model):
            raise PermissionDenied(
                f"this key may not use the model {model[:64]!r}; see /v1/models for those it may",
                param="model",
                reason="model_not_allowed",
            )


ANYBODY = Caller("none", has_key=False)
