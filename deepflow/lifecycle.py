"""The life of a process: starting, ready, draining, stopped; and how it is run and ended."""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from deepflow import clock, config, ids, process_metrics, telemetry
from deepflow.core.bound import bound_to_parent as bound_to_parent
from deepflow.mesh_tls import mesh_tls
from deepflow.v1 import types_pb2 as types

log = logging.getLogger(__name__)

State: TypeAlias = types.LifecycleState.ValueType

GC_THRESHOLDS = (20_000, 20, 50)

EXIT_BAD_CONFIG = 2
EXIT_CANNOT_START = 3


class Lifecycle:
    """Where this process stands, since when, and how long each start-up step took."""

    def __init__(self) -> None:
        self.state: State = types.LIFECYCLE_STATE_STARTING
        self.detail = ""
        self.started_unix_ms = clock.unix_ms()
        self.since_unix_ms = self.started_unix_ms
        self.step_seconds: dict[str, float] = {}
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_ready(self) -> bool:
        return self.state in (types.LIFECYCLE_STATE_READY, types.LIFECYCLE_STATE_BLANK)

    @property
    def is_draining(self) -> bool:
        return self.state >= types.LIFECYCLE_STATE_DRAINING

    @property
    def word(self) -> str:
        return state_word(self.state)

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def to(self, state: State, detail: str = "") -> None:
        """Enter a state; draining is never left but for stopped."""
        if self.is_draining and state < self.state:
            return
        if state != self.state:
            self.since_unix_ms = clock.unix_ms()
            log.info("state %s -> %s %s", self.word, state_word(state), detail)
        self.state, self.detail = state, detail
        process_metrics.READY.set(self.is_ready)
        for listener in self._listeners:
            listener()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A named piece of start-up; shown while it runs, timed when it ends."""
        started = clock.monotonic()
        self.detail = name
        yield
        self.step_seconds[name] = clock.monotonic() - started
        self.detail = ""


def calm_garbage_collector() -> None:
    """Call once started: what lives for ever is never looked at again, and the rest less often.

    A full collection stops a process for tens of milliseconds, which its streams would feel.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def state_word(state: State) -> str:
    """LIFECYCLE_STATE_READY -> "ready"."""
    return types.LifecycleState.Name(state).removeprefix("LIFECYCLE_STATE_").lower()


class Server(Protocol):
    """What every service's server.py offers to `run`."""

    lifecycle: Lifecycle

    async def start(self) -> None:
        """Come up and listen. Raises OSError or ConfigError for what a person can mend."""

    async def drain(self) -> None:
        """Take nothing new; return when running work has ended."""

    async def stop(self) -> None:
        """Close everything; called once, also after a failed start."""


Config = TypeVar("Config", bound=config.ServiceConfig)


def run(service: str, kind: type[Config], make_server: Callable[[Config], Server]) -> None:
    """The main function of every service; ends the process."""
    path = _parse_arguments(service, kind)
    from deepflow import rpc  # late: whoever only wants a state's word needs no gRPC

    try:
        settings = config.load(kind, service, path=path)
        rpc.speak_tls(mesh_tls(settings))
    except config.ConfigError as error:
        sys.stderr.write(f"{service}: {error}\n")
        sys.exit(EXIT_BAD_CONFIG)
    settings = settings.model_copy(update={"id": settings.id or ids.new_id(service)})
    telemetry.configure_logging(
        service, settings.id, level=settings.log_level, log_format=settings.log_format
    )
    process_metrics.introduce(service)
    for name in config.unknown_variables(kind, service, os.environ):
        log.warning("%s is not a setting of %s and is ignored", name, service)
    import uvloop  # late: --help and config errors need no event loop

    sys.exit(uvloop.run(_serve(service, make_server, settings)))


async def _serve(service: str, make_server: Callable[[Config], Server], settings: Config) -> int:
    try:
        # Made inside the loop: gRPC ties what it makes to the loop of that moment.
        await _live(service, make_server(settings), settings.drain_seconds)
    except (OSError, config.ConfigError) as error:
        sys.stderr.write(f"{service}: {error}\n")
        return EXIT_CANNOT_START
    return 0


async def _live(service: str, server: Server, drain_seconds: float) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await server.start()
        calm_garbage_collector()
        await stopping.wait()
        server.lifecycle.to(types.LIFECYCLE_STATE_DRAINING)
        try:
            async with asyncio.timeout(drain_seconds):
                await server.drain()
        except TimeoutError:
            log.warning("%s had work after %.0f s of draining", service, drain_seconds)
    finally:
        await server.stop()
        server.lifecycle.to(types.LIFECYCLE_STATE_STOPPED)


def _parse_arguments(service: str, kind: type[config.ServiceConfig]) -> Path | None:
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service}",
        description=f"Run one DeepFlow {service.replace('_', ' ')} until SIGTERM, which drains it.",
        epilog="Settings (environment variable [default]; DEEPFLOW_NAME sets it for every service,"
        f" the file's '{service}:' section too):\n{config.describe(kind, service)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    path: Path | None = parser.parse_args().config
    return path
