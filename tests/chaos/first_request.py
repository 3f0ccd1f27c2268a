"""How long a replica that is ready waits for its first request, while others are busy."""

import threading
import time

from tests.chaos.mesh import Mesh
from tests.stack import LIVENESS_SECONDS

LOOK_SECONDS = 0.02
TOKENS = "deepflow_task_executor_tokens_total"
RUNNING = "deepflow_task_executor_sequences_running"


def first_routed_after_ready(mesh: Mesh, model: str) -> int:
    """Milliseconds; one replica more for as long as it takes. Needs work on the others."""
    known = set(mesh.names("task_executor"))
    scaling = threading.Thread(target=mesh.stack.cli, args=("scale", model, str(len(known) + 1)))
    scaling.start()
    try:
        return _measure(mesh, known)
    finally:
        scaling.join()
        mesh.stack.cli("scale", model, str(len(known)))


def _measure(mesh: Mesh, known: set[str]) -> int:
    deadline = time.monotonic() + LIVENESS_SECONDS
    while time.monotonic() < deadline:
        for row in mesh.status()["processes"]:
            is_new = row["service"] == "task_executor" and row["name"] not in known
            if is_new and row["state"] == "ready":
                return _until_it_works(mesh, row, deadline)
        time.sleep(LOOK_SECONDS)
    raise AssertionError("no further replica became ready")


def _until_it_works(mesh: Mesh, row: dict[str, object], deadline: float) -> int:
    name, ready_unix_ms = str(row["name"]), int(str(row["since_unix_ms"]))
    mesh.learn(name, str(row["health_address"]))
    while time.monotonic() < deadline:
        metrics = mesh.metrics(name)
        now_unix_ms = time.time() * 1000
        if metrics[TOKENS] or metrics[RUNNING]:
            return max(0, round(now_unix_ms - ready_unix_ms))
        time.sleep(LOOK_SECONDS)
    raise AssertionError(f"nothing was routed to {name}")
