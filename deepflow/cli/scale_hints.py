"""What a person may have meant who asked to scale something that cannot be: pure."""

COUNT_MAX = 64

_MODELS = "task executors are scaled by the model that they hold: deepflow scale MODEL N"
_ONE = "a stack has one; it is not scaled"
_HINTS = {
    "job-executor": "did you mean 'job-executors'?",
    "job-executors": "did you mean 'job-executors'?",
    "je": "did you mean 'job-executors'?",
    "gateway": "did you mean 'gateways'?",
    "gateways": "did you mean 'gateways'?",
    "task-executor": _MODELS,
    "task-executors": _MODELS,
    "te": _MODELS,
    "cluster-manager": "their number is chosen with 'deepflow up --cluster-managers N'",
    "cluster-managers": "their number is chosen with 'deepflow up --cluster-managers N'",
    "kv-store": _ONE,
    "nats": _ONE,
    "redis": _ONE,
}


def hint_for(name: str) -> str:
    """Empty where nothing is known to be meant."""
    return _HINTS.get(name.lower().replace("_", "-"), "")


def wrong_count(name: str, count: int) -> str:
    """Empty where it may be asked for."""
    if 1 <= count <= COUNT_MAX:
        return ""
    wrong = f"N is {count}; it must be from 1 to {COUNT_MAX}"
    if count == 0 and name not in ("job-executors", "gateways"):
        return f"{wrong}. To serve a model no more: deepflow undeploy {name}"
    return wrong
