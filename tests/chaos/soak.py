"""A whole mesh under streams without pause, while its control plane is killed and suspended.

`make soak MINUTES=10` (SEED=… repeats the order of the disturbances) prints one JSON report, and
ends with 1 where anything failed. `tests/chaos/test_soak.py` is its short form.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.chaos import slow_model, trees
from tests.chaos.disturbances import Disturber, disturbances
from tests.chaos.first_request import first_routed_after_ready
from tests.chaos.load import Load
from tests.chaos.mesh import Mesh
from tests.chaos.readings import Sampler, baseline, differences
from tests.stack import Stack, running_stack, wait_until

MODEL = "slow"
TOKENS_MAX = 200
PROMPTS = [f"The story of the {number}th traveller. " * 6 for number in range(80)]
SILENCE_SECONDS = 30.0
# Well beyond the silences: what is suspended is to come back as it was, not as a new process.
LIVENESS_SECONDS = "20"
SETTLE_SECONDS_MAX = 120.0
LINKED = ("gateway", "job_executor")
# Ended jobs are remembered for a while; shorter here, for the end to be like the beginning.
SETTINGS = {"DEEPFLOW_JOB_EXECUTOR_LOG_TTL_SECONDS": "1"}


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float
    seed: int
    streams: int = 32
    silence_seconds: float = SILENCE_SECONDS  # 0: none that long
    disturbances_min: int = 0  # however long they take


def soak(plan: Plan, folder: Path) -> dict[str, Any]:
    model = slow_model.write(folder / MODEL)
    options = ["--model", str(model), "--device", slow_model.DEVICE]
    options += ["--kv-memory", slow_model.KV_MEMORY, "--liveness-seconds", LIVENESS_SECONDS]
    for kind in ("gateways", "job-executors", "task-executors", "cluster-managers"):
        options += [f"--{kind}", "2"]
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        with running_stack(folder / "data", *options) as stack:
            return _soak_on(plan, stack)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _soak_on(plan: Plan, stack: Stack) -> dict[str, Any]:
    mesh = Mesh(stack)
    wait_until(mesh.is_well, "a well mesh")
    _warm_up(mesh)
    before = _settled_baseline(mesh)
    restarts, began = mesh.restarts(), time.monotonic()
    disturber = Disturber(mesh)
    with _load(mesh, plan.streams) as load, Sampler(mesh) as sampler:
        _disturb(plan, disturber, until=began + plan.seconds)
        _wait(lambda: set(mesh.names(*LINKED)) <= set(sampler.links_min))
        lowest_links = dict(sampler.links_min)
        first_routed_ms = first_routed_after_ready(mesh, MODEL)
    after = _settle(mesh, before)
    growth = sampler.growth()
    is_equal = _have_trees_settled(mesh)
    findings = {
        "failures": load.failures,
        "answers_that_differ": sum(len(it) > 1 for it in load.texts_by_prompt.values()),
        "not_at_baseline": after,
        "restarts_of_the_data_path": {k: v for k, v in mesh.restarts().items() if v != restarts[k]},
        "members_given_up": mesh.given_up(),
        "links_lost": {name: count for name, count in lowest_links.items() if count != 2},
        "never_looked_at": sorted(set(mesh.names(*LINKED)) - set(lowest_links)),
        "trees_that_differ": [] if is_equal else [trees.indexes(mesh), trees.trees(mesh)],
    }
    return {
        "passed": not any(findings.values()),
        "seed": plan.seed,
        "seconds": round(time.monotonic() - began, 1),
        "streams": plan.streams,
        "answers": load.answers,
        "tokens": load.answers * TOKENS_MAX,
        "longest_silence_in_a_stream_seconds": round(load.longest_silence_seconds, 2),
        "first_routed_after_ready_ms": first_routed_ms,
        "blocks_in_trees": {name: held for name, (held, _) in trees.indexes(mesh).items()},
        **findings,
        "not_flat": [name for name, it in growth.items() if not it["is_flat"]],
        "growth": growth,
        "disturbances": disturber.done,
    }


def _load(mesh: Mesh, streams: int) -> Load:
    return Load(mesh.gateways, clients=streams, max_tokens=TOKENS_MAX, model=MODEL, prompts=PROMPTS)


def _warm_up(mesh: Mesh) -> None:
    """Whatever is loaded, compiled or opened at the first use."""
    with _load(mesh, streams=8) as load:
        pass
    assert load.failures == []


def _settled_baseline(mesh: Mesh) -> dict[str, float]:
    """Once two looks in a row are alike and nothing runs."""
    last: dict[str, float] = {}

    def is_still() -> bool:
        nonlocal last
        now = baseline(mesh)
        idle = now["je-0 deepflow_job_executor_stories"] == 0
        is_same, last = now == last, now
        return is_same and idle and now["je-1 deepflow_job_executor_stories"] == 0

    wait_until(is_still, "a mesh at rest", SETTLE_SECONDS_MAX)
    return last


def _disturb(plan: Plan, disturber: Disturber, until: float) -> None:
    chance = random.Random(plan.seed)
    for disturbance in disturbances(chance, plan.silence_seconds):
        is_time_up = time.monotonic() + disturbance.seconds >= until
        if is_time_up and len(disturber.done) >= plan.disturbances_min:
            return
        disturber.apply(disturbance)
        time.sleep(chance.uniform(0.2, 2.0))


def _settle(mesh: Mesh, before: dict[str, float]) -> dict[str, Any]:
    """What is still not as it was, after time enough."""
    found: dict[str, Any] = {}

    def is_as_before() -> bool:
        nonlocal found
        try:
            found = differences(before, baseline(mesh))
        except httpx.HTTPError as error:  # one that is going is listed yet, and answers no more
            found = {"unreachable": repr(error)}
        return not found

    _wait(is_as_before)
    return found


def _have_trees_settled(mesh: Mesh) -> bool:
    return _wait(lambda: trees.agree(mesh))


def _wait(condition: Any) -> bool:
    """A report says what is wrong; it does not stop at the first thing."""
    try:
        wait_until(condition, "", SETTLE_SECONDS_MAX)
    except AssertionError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--streams", type=int, default=32)
    chosen = parser.parse_args()
    sys.stderr.write(f"seed {chosen.seed}\n")
    plan = Plan(chosen.minutes * 60, chosen.seed, chosen.streams)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = soak(plan, Path(folder))
    sys.stdout.write(json.dumps(report, indent=1, default=repr) + "\n")
    sys.exit(0 if report["passed"] and not report["not_flat"] else 1)


if __name__ == "__main__":
    main()
