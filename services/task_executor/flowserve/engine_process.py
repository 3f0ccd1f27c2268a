"""The engine as a process: obeys what comes through one ring, answers through the other."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator

from deepflow import logs
from deepflow.core.encoder_spec import is_encoder_folder
from services.task_executor.flowserve.embedding.build import build_embedding_master
from services.task_executor.flowserve.embedding.master import EmbeddingMaster
from services.task_executor.flowserve.failed_steps import EngineBroken
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import (
    Cancel,
    ContextAnswer,
    ContextRequest,
    DropContext,
    Finished,
    FromEngine,
    KeepContext,
    ListContexts,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    StepOutput,
    Stop,
    Submit,
    ToEngine,
    Unload,
    Unloaded,
)
from services.task_executor.flowserve.pulse import Pulse
from services.task_executor.flowserve.ring import (
    Ring,
    RingFull,
    decode_to_engine,
    encode,
    wait_readable,
)

log = logging.getLogger(__name__)

PARENT_CHECK_SECONDS = 1.0


class ParentLost(Exception):
    """Nobody is left who could read an answer."""


class EngineProcess:
    def __init__(self, inbox: Ring, outbox: Ring) -> None:
        self._inbox = inbox.reader()
        self._outbox = outbox.writer()
        self._clock = outbox.step_clock
        self._marks = outbox.marks
        self._marks.rest()  # no pulse is owed
        self._pulse: Pulse | None = None
        # A parent that died before this line goes unnoticed; the shell's way of spawning sees it.
        self._parent_pid = os.getppid()
        self._load: Load | None = None
        self._master: Master | EmbeddingMaster | None = None
        self._is_stopping = False

    def run(self) -> None:
        """Until Stop; ParentLost when the parent dies."""
        while not self._is_stopping:
            self._await_work()
            self._drain_inbox()
            self._step()
        self._drop_model()

    @contextlib.contextmanager
    def report(self, step: str) -> Iterator[None]:
        """A named step of start-up: announced when it begins, timed when it ends."""
        self._publish(Progress(step))
        started = time.monotonic()
        yield
        self._publish(Progress(step, time.monotonic() - started))

    def _await_work(self) -> None:
        self._require_parent()
        fds = [self._inbox.fileno(), *(self._master.wake_fds if self._master else ())]
        while True:
            seconds = self._master.seconds_to_next if self._master else None
            wait = PARENT_CHECK_SECONDS if seconds is None else min(seconds, PARENT_CHECK_SECONDS)
            if wait <= 0 or wait_readable(fds, wait):
                return
            self._require_parent()

    def _drain_inbox(self) -> None:
        for record in self._inbox.drain():
            self._obey(decode_to_engine(record))

    def _step(self) -> None:
        if self._master is not None and (output := self._master.step()):
            self._publish(output)

    def _obey(self, message: ToEngine) -> None:
        match message:
            case Submit() if self._master is None:
                self._publish(_refusal(message))
            case Submit() | Cancel():
                if self._master is not None:
                    self._master.obey(message)
            case KeepContext() | DropContext() | ListContexts():
                if isinstance(self._master, Master):
                    self._master.obey(message)
                else:
                    self._publish(_context_refusal(message))
            case Load():
                self._publish(self._hold(message))
            case Unload():
                self._drop_model()
                self._publish(Unloaded())
            case Stop():
                self._is_stopping = True

    def _hold(self, load: Load) -> Loaded | LoadFailed:
        if self._load is not None and self._load != load:
            return LoadFailed(
                load.deployment, f"the engine holds {self._load.deployment}: unload it first"
            )
        logs.say_always(deployment=load.deployment)
        try:
            if self._master is None:
                self._master = self._build_master(load)
        except EngineBroken as error:
            self._publish(LoadFailed(load.deployment, str(error)))
            raise
        except Exception as error:
            # Where the model or the machine is at fault, the words say it all.
            trace = None if isinstance(error, ValueError) else error
            log.error("cannot load %s: %s", load.deployment, error, exc_info=trace)
            logs.say_always(deployment="")
            return LoadFailed(load.deployment, str(error) or type(error).__name__)
        self._load = load
        config = self._master.config
        if config.tensor_parallel * config.pipeline_parallel > 1 and self._pulse is None:
            self._pulse = Pulse(self._marks)
        return Loaded(
            deployment=load.deployment,
            block_size=config.block_size,
            kv_blocks=config.kv_blocks,
            max_sequences=config.max_sequences,
            max_tokens=config.max_tokens,
            vocab_size=config.vocab_size,
            dtype=config.dtype,
            weight_bytes=config.weight_bytes,
            kv_bytes=config.kv_bytes,
            model_revision=config.model_revision,
            kv_layout=config.kv_layout,
            max_step_tokens=config.max_step_tokens,
            tensor_parallel=config.tensor_parallel,
            pipeline_parallel=config.pipeline_parallel,
            kv_dtype=config.kv_dtype,
            kv_dram_blocks=config.kv_dram_blocks,
            kv_disk_blocks=config.kv_disk_blocks,
        )

    def _build_master(self, load: Load) -> Master | EmbeddingMaster:
        if is_encoder_folder(load.source):
            return build_embedding_master(load, self.report, self._clock)
        # Late: a blank engine holds nothing heavy.
        from services.task_executor.flowserve.executor.factory import build_executor

        built = build_executor(load, self.report)
        return Master(
            built.config,
            built.executor,
            grammars=built.grammars,
            tiers=built.tiers,
            step_clock=self._clock,
        )

    def _drop_model(self) -> None:
        logs.say_always(deployment="")
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None
        master, self._master, self._load = self._master, None, None
        if master is not None and (output := master.close()):
            self._publish(output)

    def _publish(self, message: FromEngine) -> None:
        """Wait while the shell reads slowly: a token is never dropped."""
        record = encode(message)
        while True:
            try:
                return self._outbox.send(record, PARENT_CHECK_SECONDS)
            except RingFull:
                self._require_parent()

    def _require_parent(self) -> None:
        if os.getppid() != self._parent_pid:
            raise ParentLost


def _refusal(message: Submit) -> StepOutput:
    why = "the engine holds no model"
    finished = Finished(message.handle, "error", len(message.prompt_token_ids), 0, 0, why)
    return StepOutput(0, 0.0, [], [], [], [], [], [finished], [], 0, 0, 0)


def _context_refusal(message: ContextRequest) -> StepOutput:
    why = "the engine holds no model that generates text"
    answer = ContextAnswer(message.handle, [], why)
    return StepOutput(0, 0.0, [], [], [], [], [], [], [], 0, 0, 0, contexts=[answer])
