"""Builds the parts of a job executor and serves them."""

import os

from deepflow import clock, rpc
from deepflow.bus import Bus
from deepflow.health import HealthServer
from deepflow.ids import new_id, new_incarnation
from deepflow.lifecycle import Lifecycle
from deepflow.membership import HEARTBEAT_SUBJECT, Membership
from deepflow.telemetry import Tracing
from deepflow.v1 import cluster_pb2, events_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cache_pb2_grpc import add_PromptTreeServiceServicer_to_server
from deepflow.v1.contexts_pb2_grpc import add_ContextCacheServiceServicer_to_server
from deepflow.v1.jobs_pb2_grpc import add_JobExecutorServiceServicer_to_server
from services.job_executor import metrics
from services.job_executor.config import JobExecutorConfig
from services.job_executor.contexts.keepers import Keepers
from services.job_executor.contexts.making import ContextMaker
from services.job_executor.contexts.orphans import Orphans
from services.job_executor.contexts.recall import Contexts
from services.job_executor.contexts.records import ContextRecords
from services.job_executor.contexts.service import ContextCacheService
from services.job_executor.contexts.sweeper import Sweeper
from services.job_executor.jobs.delivery import deliver
from services.job_executor.jobs.parts import Parts
from services.job_executor.jobs.service import JobExecutorService
from services.job_executor.jobs.story import Stories
from services.job_executor.jobs.stream import JobStreams
from services.job_executor.jobs.token_log import EndedJobs
from services.job_executor.jobs.tokenization import Tokenization
from services.job_executor.links.link import TaskExecutorLink
from services.job_executor.links.links import Links
from services.job_executor.prompt_tree.listener import KvListener
from services.job_executor.prompt_tree.matcher import PromptMatcher
from services.job_executor.prompt_tree.service import PromptTreeService
from services.job_executor.prompt_tree.tree import PromptTree
from services.job_executor.scheduling.registry import make_policy
from services.job_executor.scheduling.waiting_room import WaitingRoom
from services.job_executor.tokenizer.library import ModelLibrary
from services.job_executor.tokenizer.pool import WorkPool

STOP_SECONDS = 0.5


class JobExecutorServer:
    """One job executor. Answers only what the view and its links allow; knows nothing else."""

    def __init__(self, config: JobExecutorConfig) -> None:
        self.lifecycle = Lifecycle()
        self.id = config.id or new_id("je")
        self.config = config
        self._incarnation = new_incarnation()
        self._tracing = Tracing("job-executor", config.otlp_endpoint)
        self._health = HealthServer(self.lifecycle)
        self._bus = Bus(config, self.id)
        self._grpc = rpc.new_server(config.cluster_token)
        self._pool = WorkPool(
            threads=config.tokenizer_threads,
            queue_max=config.tokenizer_queue_max,
            seconds_max=config.template_seconds_max,
        )
        self._library = ModelLibrary(self._pool, config.model_load_seconds_max)
        self.links = Links(self._make_link)
        self.room = WaitingRoom(self.links, config.room_limits)
        self.prompt_tree = PromptTree()
        self._kv_listener = KvListener(config, self._bus, self.prompt_tree)
        self.ended = EndedJobs(ttl_seconds=config.log_ttl_seconds, bytes_max=config.log_bytes_max)
        self.stories = Stories(stories_max=config.stories_max, ttl_seconds=config.log_ttl_seconds)
        self._store = rpc.Peer(config.kv_store_address, config.cluster_token)
        records, keepers = ContextRecords(self._store), Keepers(self.links)
        self._contexts = Contexts(records, keepers)
        parts = self._parts()
        self._maker = ContextMaker(parts, records, keepers)
        self._context_service = ContextCacheService(self._maker, records, keepers)
        self._sweeper = Sweeper(records)
        self._orphans = Orphans(records, keepers)
        self.streams = JobStreams(parts, jobs_max=config.jobs_max, incarnation=self._incarnation)
        self._service = JobExecutorService(self.streams, Tokenization(parts), self.stories, self.id)
        self.membership = Membership(
            config,
            self._bus,
            self.lifecycle,
            member=cluster_pb2.Member(
                id=self.id,
                kind=types.MEMBER_KIND_JOB_EXECUTOR,
                incarnation=self._incarnation,
                pid=os.getpid(),
            ),
            load=self._fill_load,
            on_view=self._adopt,
        )
        self._watch_metrics()

    async def start(self) -> None:
        config, member = self.config, self.membership.member
        with self.lifecycle.step("listen"):
            await self._health.start(config.host, config.health_port)
            add_JobExecutorServiceServicer_to_server(self._service, self._grpc)
            add_PromptTreeServiceServicer_to_server(PromptTreeService(self.prompt_tree), self._grpc)
            add_ContextCacheServiceServicer_to_server(self._context_service, self._grpc)
            port = await rpc.listen(self._grpc, config.host, config.port)
        member.address = f"{config.advertised_host}:{port}"
        member.health_address = f"{config.advertised_host}:{self._health.port}"
        self._bus.start()
        await self._bus.subscribe(
            f"{HEARTBEAT_SUBJECT}.task_executor.*", events_pb2.Heartbeat, self._note_heartbeat
        )
        await self._kv_listener.start()
        self._sweeper.start()
        self._orphans.start()
        self.lifecycle.to(types.LIFECYCLE_STATE_READY)
        await self.membership.start()

    async def drain(self) -> None:
        """Unready by now: the gateways turn elsewhere, and what runs here ends."""
        await self.streams.drain(self.config.linger_seconds)
        await self._maker.drain()

    async def stop(self) -> None:
        await self.membership.close()
        await self._grpc.stop(STOP_SECONDS)
        await self._kv_listener.close()
        await self._sweeper.close()
        await self._orphans.close()
        await self._maker.close()
        await self._contexts.close()
        await self._store.close()
        await self.links.close()
        self._library.close()
        self._pool.close()
        await self._bus.close()
        await self._health.close()
        self._tracing.close()

    def _parts(self) -> Parts:
        return Parts(
            id=self.id,
            links=self.links,
            library=self._library,
            pool=self._pool,
            policy=make_policy(self.config.policy),
            matcher=PromptMatcher(self.prompt_tree, self.links, self._pool),
            room=self.room,
            ended=self.ended,
            stories=self.stories,
            contexts=self._contexts,
            tracing=self._tracing,
            tasks_per_job_max=self.config.tasks_per_job_max,
            placement_attempts_max=self.config.placement_attempts_max,
            embeddings_per_job_max=self.config.embeddings_per_job_max,
            embeddings_in_flight_max=self.config.embeddings_in_flight_max,
        )

    def _make_link(self, member: cluster_pb2.Member) -> TaskExecutorLink:
        hello = tasks_pb2.TasksHello(job_executor_id=self.id, incarnation=self._incarnation)
        token, room, orphans = self.config.cluster_token, self.room, self._orphans
        return TaskExecutorLink(member, token, hello, deliver, room.wake, orphans.look_at)

    def _adopt(self, view: cluster_pb2.ClusterView) -> None:
        self._library.adopt(view.deployments)
        self.links.adopt(list(view.members))
        self.room.wake()
        self._kv_listener.adopt(view.members)

    async def _note_heartbeat(self, beat: events_pb2.Heartbeat) -> None:
        self.links.note_heartbeat(beat)
        self._kv_listener.note_heartbeat(beat)

    def _fill_load(self, beat: events_pb2.Heartbeat) -> None:
        """Called with every heartbeat, which is also often enough to forget old logs."""
        self.ended.expire(clock.monotonic())
        self.stories.expire(clock.monotonic())
        jobs = self.streams.jobs
        beat.load.running = sum(job.is_admitted for job in jobs)
        beat.load.waiting = len(jobs) - beat.load.running

    def _watch_metrics(self) -> None:
        """Gauges are read when they are scraped."""
        metrics.JOBS_RUNNING.set_function(lambda: self.streams.num_jobs)
        metrics.TASKS_WAITING.set_function(lambda: self.room.num_waiting)
        metrics.LINKS.set_function(lambda: self.links.num_live)
        metrics.TOKENIZER_QUEUE.set_function(lambda: self._pool.num_pending)
        metrics.KV_BLOCKS.set_function(lambda: self.prompt_tree.num_blocks)
        metrics.LOG_BYTES.set_function(lambda: self.ended.num_bytes)
        metrics.STORIES.set_function(lambda: len(self.stories))
