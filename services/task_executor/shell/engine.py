"""The engine process as the shell sees it: spawned, spoken to, watched, replaced."""

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence

from deepflow import background, clock
from deepflow.config import PREFIX
from deepflow.errors import DeepFlowError, InvalidRequest, RateLimited, Unavailable
from deepflow.lifecycle import bound_to_parent
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.flowserve.messages import (
    Cancel,
    ContextRequest,
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
from services.task_executor.flowserve.ring import (
    RecordTooLarge,
    Ring,
    RingFull,
    decode_from_engine,
    encode,
)
from services.task_executor.shell.hang import PulseTaker, Suspension, is_hung, is_stopped

log = logging.getLogger(__name__)

# Steps that follow one another faster than this are passed on together: a step of an accelerator
# takes longer and is passed on at once, a burst of tiny ones costs one message per stream.
GATHER_SECONDS = 0.001
WATCH_SECONDS = 0.25
STOP_SECONDS = 2.0
RESTART_FIRST_SECONDS = 0.1
RESTART_MAX_SECONDS = 10.0
STEADY_SECONDS = 10.0  # an engine that lived this long starts anew without a pause
RETRY_AFTER_SECONDS = 1.0


class EngineProcess:
    """One engine at a time. A lost one is replaced; its work fails through `on_lost`."""

    def __init__(self, config: TaskExecutorConfig) -> None:
        self._config = config
        self.on_step: list[Callable[[StepOutput], None]] = []
        self.on_loaded: list[Callable[[Loaded], None]] = []
        self.on_unloaded: list[Callable[[], None]] = []
        self.on_lost: list[Callable[[DeepFlowError], None]] = []
        self.on_progress: list[Callable[[str], None]] = []  # the step that began
        self.step_seconds: dict[str, float] = {}
        self.current_step = ""
        self.deployment = ""
        self.process: Process | None = None
        self._link: _Link | None = None
        self._answer: asyncio.Future[Loaded | LoadFailed | Unloaded] | None = None
        self._cancelled: list[int] = []  # cancels that found the ring full
        self._keeper: asyncio.Task[None] | None = None
        self.is_busy: Callable[[], bool] = lambda: False  # has anybody work for it?
        self._quiet_since = 0.0

    def start(self) -> None:
        """Keep an engine running from now on; the first is spawned at once."""
        self._link = _Link()
        self._keeper = asyncio.create_task(self._keep_running())

    async def load(self, message: Load) -> Loaded | LoadFailed:
        """Raises Unavailable when the engine dies on it."""
        answer = await self._ask(message)
        assert isinstance(answer, Loaded | LoadFailed)
        if isinstance(answer, Loaded):
            self.deployment = answer.deployment
            for listener in self.on_loaded:
                listener(answer)
        return answer

    async def unload(self) -> None:
        self.deployment = ""
        await self._ask(Unload())
        for listener in self.on_unloaded:
            listener()

    def submit(self, message: Submit | ContextRequest) -> None:
        """Raises RateLimited where the engine's inbox is full, Unavailable where it is gone."""
        if not self._send(message):
            raise RateLimited(
                "the engine's inbox is full",
                reason="task_executor_full",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    def cancel(self, handles: Sequence[int]) -> None:
        """Never lost: what does not fit now goes with the next step."""
        self._cancelled += handles
        if not self._cancelled or self._link is None:
            return
        if self._send(Cancel(handles=self._cancelled)):
            self._cancelled = []

    def replace(self) -> None:
        """By a new one that holds nothing, whatever it is doing."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    async def close(self) -> None:
        await background.end(self._keeper)
        if self.process is not None:
            await self._end(self.process)
        if self._link is not None:
            self._link.close()
            self._link = None

    def _send(self, message: ToEngine) -> bool:
        if self._link is None:
            raise Unavailable(
                "the engine is being restarted", retry_after_seconds=RETRY_AFTER_SECONDS
            )
        try:
            self._link.inbox.send(encode(message), timeout=0.0)
        except RecordTooLarge as error:
            raise InvalidRequest(str(error), reason="prompt_too_large") from error
        except RingFull:
            return False
        return True

    async def _ask(self, message: Load | Unload) -> Loaded | LoadFailed | Unloaded:
        if self._answer is not None:
            raise Unavailable("the engine is busy with another load", retry_after_seconds=1.0)
        self._answer = asyncio.get_running_loop().create_future()
        try:
            if not self._send(message):
                raise Unavailable("the engine's inbox is full", retry_after_seconds=1.0)
            return await self._answer
        finally:
            self._answer = None

    async def _keep_running(self) -> None:
        pause = RESTART_FIRST_SECONDS
        while True:
            started = clock.monotonic()
            reason = await self._run_once()
            self._lose(Unavailable(reason, reason="engine_lost", retry_after_seconds=1.0))
            if clock.monotonic() - started > STEADY_SECONDS:
                pause = RESTART_FIRST_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, RESTART_MAX_SECONDS)

    async def _run_once(self) -> str:
        """One engine's whole life; answers why it ended."""
        link = self._link or _Link()
        self._link = link
        self.process = await self._spawn(link)
        loop = asyncio.get_running_loop()
        loop.add_reader(link.outbox.fileno(), self._receive_and_gather, link)
        watcher = asyncio.create_task(self._kill_when_hung(self.process, link))
        try:
            code = await self.process.wait()
        finally:
            watcher.cancel()
            loop.remove_reader(link.outbox.fileno())
        self._receive()  # what it said last
        self._link = None
        link.close()
        return f"the engine process ended (exit code {code})"

    async def _spawn(self, link: "_Link") -> Process:
        command = [sys.executable, "-m", "services.task_executor.flowserve"]
        for option, ring in (("--inbox", link.to_engine), ("--outbox", link.from_engine)):
            command += [option, ",".join(str(fd) for fd in ring.fds)]
        command += ["--id", self._config.id or "engine"]
        command += ["--log-level", self._config.log_level, "--log-format", self._config.log_format]
        if self._config.preload:
            command += ["--preload", self._config.preload]
        process = await asyncio.create_subprocess_exec(
            *bound_to_parent(command),
            pass_fds=(*link.to_engine.fds, *link.from_engine.fds),
            stdin=asyncio.subprocess.DEVNULL,
            env=_without_secrets(os.environ),
        )
        log.info("engine started", extra={"engine_pid": process.pid})
        return process

    async def _kill_when_hung(self, process: Process, link: "_Link") -> None:
        suspension, stopped_max = Suspension(), self._config.suspended_seconds
        pulse = PulseTaker.on(link.from_engine.marks, process.pid)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now, has_stopped = clock.monotonic(), is_stopped(process.pid)
            if suspension.seconds(has_stopped, now) > stopped_max:
                log.error("the engine was stopped by a signal for too long and is killed")
                process.kill()
                return
            if not self.is_busy():
                self._quiet_since = now
            running = link.from_engine.step_clock.read()
            if pulse.is_lost(running is not None, has_stopped, now) or is_hung(
                running,
                self._quiet_since,
                now,
                factor=self._config.hang_factor,
                floor_seconds=self._config.hang_floor_seconds,
            ):
                log.error("the engine hangs and is killed")
                process.kill()
                return

    def _receive_and_gather(self, link: "_Link") -> None:
        """Take what there is, and look again in a moment until there is nothing."""
        asyncio.get_running_loop().remove_reader(link.outbox.fileno())
        self._look(link)

    def _look(self, link: "_Link") -> None:
        if self._link is not link:
            return
        loop = asyncio.get_running_loop()
        if self._receive():
            loop.call_later(GATHER_SECONDS, self._look, link)
        else:
            loop.add_reader(link.outbox.fileno(), self._receive_and_gather, link)

    def _receive(self) -> bool:
        """Answers whether there was anything."""
        if self._link is None:
            return False
        records = self._link.outbox.drain()
        if records:
            self._quiet_since = clock.monotonic()
        for record in records:
            self._handle(decode_from_engine(record))
        if self._cancelled:
            self.cancel([])
        return bool(records)

    def _handle(self, message: object) -> None:
        if isinstance(message, StepOutput):
            for listener in self.on_step:
                listener(message)
        elif isinstance(message, Progress):
            self._note(message)
        elif self._answer is not None and not self._answer.done():
            assert isinstance(message, Loaded | LoadFailed | Unloaded)
            self._answer.set_result(message)

    def _note(self, progress: Progress) -> None:
        self.current_step = progress.step if progress.seconds is None else ""
        if progress.seconds is not None:
            self.step_seconds[progress.step] = progress.seconds
            return
        for listener in self.on_progress:
            listener(progress.step)

    def _lose(self, error: DeepFlowError) -> None:
        log.error("%s", error)
        self.deployment = ""
        self._cancelled = []
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self._link = _Link()  # a load may be sent before the next engine is up
        for listener in self.on_lost:
            listener(error)

    async def _end(self, process: Process) -> None:
        if process.returncode is not None:
            return
        with contextlib.suppress(DeepFlowError):
            self._send(Stop())
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


def _without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The engine reads folders and grammars of strangers: it is told nothing of the cluster."""
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX)}


class _Link:
    """The two rings between a shell and one engine."""

    def __init__(self) -> None:
        self.to_engine = Ring.create()
        self.from_engine = Ring.create()
        self.inbox = self.to_engine.writer()
        self.outbox = self.from_engine.reader()

    def close(self) -> None:
        self.to_engine.close()
        self.from_engine.close()
