"""How admin routes ask the cluster manager, which owns what they show and change."""

import contextlib
from collections.abc import Iterator

from deepflow.errors import DeadlineExceeded, InvalidRequest, Unavailable
from services.gateway.schema.admin import own_name

RETRY_AFTER_SECONDS = 1.0


@contextlib.contextmanager
def asking_the_manager() -> Iterator[None]:
    """Its refusals in this API's words; one clear answer while none leads."""
    try:
        yield
    except InvalidRequest as error:
        kind = type(error)  # a body that is too large stays that
        raise kind(error.message, param=own_name(error.param), reason=error.reason) from error
    except Unavailable as error:
        raise Unavailable(
            f"no cluster manager can do that right now ({error.message}); try again in a moment",
            reason="no_cluster_manager",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        ) from error
    except DeadlineExceeded as error:
        raise DeadlineExceeded(
            "the cluster manager did not answer in time; a change may still come about: look again"
        ) from error
