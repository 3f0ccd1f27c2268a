"""Follows a stack while it comes up: what is waited for, in which order, and what went wrong."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from deepflow import clock
from deepflow.access.secrets import cluster_key
from deepflow.deployments import cut_words, describe_deployments
from deepflow.errors import DeepFlowError, Unavailable
from deepflow.local import http
from deepflow.local.cluster import ClusterLink
from deepflow.local.conditions import Conditions, MemberFailed
from deepflow.local.errors import StartupFailed
from deepflow.local.failures import failed, first_failure
from deepflow.local.gateways import Gateways
from deepflow.local.progress import ModelChoice, Reporter, Steps
from deepflow.local.stack import Stack
from deepflow.local.supervisor import Supervisor
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

POLL_SECONDS = 0.05
# For everything but loading a model, which takes what it takes and is bounded by its loader.
STEP_SECONDS_MAX = 60.0


class Readiness:
    def __init__(
        self,
        stack: Stack,
        supervisor: Supervisor,
        cluster: ClusterLink,
        gateways: Gateways,
        *,
        steps: Steps,
        reporter: Reporter,
    ) -> None:
        self._stack = stack
        self._supervisor = supervisor
        self._cluster = cluster
        self._gateways = gateways
        self._step = steps.step
        self._reporter = reporter
        self._key = cluster_key(stack.secrets.cluster_token)
        self._certificate = stack.options.gateway_certificate
        self._conditions = Conditions(cluster, reporter, self._key, self._certificate)
        self.has_chat_template = False
        self.makes_embeddings = False

    async def follow(self, model: ModelChoice) -> None:
        """Returns when the model answers. Raises StartupFailed as soon as that cannot happen."""
        steps = asyncio.create_task(self._steps(model))
        failure = asyncio.create_task(first_failure(self._supervisor))
        try:
            await asyncio.wait([steps, failure], return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                raise failure.result()
            await steps
        finally:
            for task in (steps, failure):
                task.cancel()
            await asyncio.wait([steps, failure])

    async def _steps(self, model: ModelChoice) -> None:
        is_true, ports = self._conditions, self._stack.ports
        with self._step("nats and redis"):
            await self._until("nats", partial(is_true.listens, ports.nats))
            await self._until("redis", partial(is_true.listens, ports.redis))
            await self._cluster.start()
        with self._step("kv_store"):
            await self._until("kv-store", partial(is_true.is_ready, ports.kv_store_health))
            self._keep_records()
        with self._step("cluster_manager"):
            health_ports = (ports.cluster_manager_health, *ports.standbys[1::2])
            await self._until("cluster-manager", partial(is_true.one_is_ready, health_ports))
        with self._step("deploy"):
            await self._deploy(model)
        with self._step("gateways"):
            for name, url in self._asked_gateways():
                await self._until(name, partial(is_true.is_up, url))
        with self._step("job_executors"):
            count = self._stack.options.job_executors
            await self._until("cluster-manager", partial(is_true.has_job_executors, count))
        with self._step("task_executors"):
            await self._load(model)
        with self._step("route"):
            for name, url in self._asked_gateways():
                await self._until(name, partial(is_true.serves, url, model))
        with self._step("first token"):
            await self._until("gateway-0", partial(self._has_first_token, model))

    def _asked_gateways(self) -> list[tuple[str, str]]:
        """Without those that a former run's number may have brought up for a moment."""
        return list(self._gateways.urls.items())[: self._stack.options.gateways]

    async def _until(
        self,
        process: str,
        condition: Callable[[], Awaitable[bool]],
        seconds: float = STEP_SECONDS_MAX,
    ) -> None:
        """`process` is whose log tells why, where the condition does not come true in time."""
        deadline = clock.monotonic() + seconds
        while not await condition():
            if clock.monotonic() > deadline:
                owner = self._supervisor.get(process)
                raise failed(f"{process} was not ready within {seconds:.0f} s", owner)
            await asyncio.sleep(POLL_SECONDS)

    def _keep_records(self) -> None:
        """From now on an empty Redis means that records were lost, also to a new kv_store."""
        self._stack.data.record_space_is_made()
        self._supervisor.get("kv-store").spec = self._stack.kv_store(initialise=False)

    async def _deploy(self, model: ModelChoice) -> None:
        try:
            for former in (await self._cluster.view()).deployments:
                if former.name != model.name:
                    await self._cluster.undeploy(former.name)
                    self._reporter.note(f"undeployed {former.name!r}, left by a former run")
            for kind, count in self._sizes.items():
                await self._cluster.scale_kind(kind, count)
            deployed = await self._cluster.deploy(model.deployment())
            self.has_chat_template = deployed.facts.has_chat_template
            self.makes_embeddings = deployed.facts.task == cluster_pb2.MODEL_TASK_EMBED
        except DeepFlowError as error:
            raise StartupFailed(f"cannot deploy {model.name}: {error.message}") from error

    @property
    def _sizes(self) -> dict[types.MemberKind.ValueType, int]:
        """What `up` was asked for goes before what a former run ended with."""
        options = self._stack.options
        return {
            types.MEMBER_KIND_JOB_EXECUTOR: options.job_executors,
            types.MEMBER_KIND_GATEWAY: options.gateways,
        }

    async def _load(self, model: ModelChoice) -> None:
        loaded = partial(self._conditions.has_loaded, model)
        try:
            await self._until("cluster-manager", loaded, seconds=float("inf"))
        except MemberFailed as error:
            owner = {p.spec.name: p for p in self._supervisor.all()}.get(error.member_id)
            raise failed(str(error), owner) from error
        await self._tell_what_was_cut(model)

    async def _tell_what_was_cut(self, model: ModelChoice) -> None:
        with contextlib.suppress(Unavailable):  # worth a line, not a wait
            for row in describe_deployments(await self._cluster.view()):
                if row["name"] == model.name and (words := cut_words(row)):
                    self._reporter.note(f"{model.name}: {words}")

    async def _has_first_token(self, model: ModelChoice) -> bool:
        """Not yet where the job executor has still to meet the task executor."""
        _, url = self._asked_gateways()[0]
        url += "/v1/"
        question: dict[str, Any] = {"model": model.name}
        if self.makes_embeddings:
            url, question["input"] = url + "embeddings", "Hello"
        else:
            url, question = url + "completions", question | {"prompt": "Hello", "max_tokens": 1}
        try:
            status, body = await http.post(
                url, question, key=self._key, certificate=self._certificate
            )
        except http.NoAnswer as error:
            raise StartupFailed(f"the first request got no answer: {error}") from error
        if status not in (200, 503) or _is_for_good(body):
            raise StartupFailed(f"the first request was answered with {status}: {body}")
        return status == 200


def _is_for_good(body: Any) -> bool:
    """Whether asking again is in vain: no later try makes another tokenizer of the same files."""
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and error.get("code") == "tokenizer_unavailable"
