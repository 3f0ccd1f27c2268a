"""The life of one local stack in one foreground process: what `deepflow up` runs."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

from deepflow.local.local_stack import LocalStack
from deepflow.local.process import ProcessState
from deepflow.local.progress import ModelChoice, Ready, Reporter, Steps
from deepflow.local.stack import StackOptions

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run(options: StackOptions, model: ModelChoice, reporter: Reporter) -> bool:
    """Returns after a stop that somebody asked for: whether everything could end in peace.

    Raises StackError for any other end.
    """
    stack, steps = LocalStack(options), Steps(reporter)
    with _stop_on_signals(stack):
        try:
            with steps.step("start"):
                await stack.start()
                stack.connect()
            can_chat = await _unless_stopped(stack, stack.bring_up(model, steps, reporter))
            if can_chat is not None:
                reporter.ready(_summary(stack, model, can_chat, steps))
                await _unless_stopped(stack, _tell_restarts(stack, reporter))
        finally:
            if stack.has_started:
                reporter.stopping()
            await stack.stop()
    reporter.stopped()
    return not stack.was_killed


async def _unless_stopped(stack: LocalStack, work: Coroutine[None, None, T]) -> T | None:
    """What the work answers; None where somebody asks to stop before it does."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stack.stop_requested.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait([working, stopping])


@contextlib.contextmanager
def _stop_on_signals(stack: LocalStack) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    # Who was started with nohup is not to hear that the terminal is gone.
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [n for n in _SIGNALS if not (n is signal.SIGHUP and is_nohup)]
    for number in numbers:
        loop.add_signal_handler(number, stack.request_stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _tell_restarts(stack: LocalStack, reporter: Reporter) -> None:
    """Runs until it is cancelled."""
    told: dict[str, int] = {}
    while True:
        change = stack.supervisor.next_change
        for process in stack.supervisor.all():
            lives_ended = process.restarts + 1
            is_news = told.get(process.spec.name, 0) < lives_ended
            if process.state is ProcessState.RESTARTING and is_news:
                told[process.spec.name] = lives_ended
                reporter.note(
                    f"{process.spec.name} ended (exit code {process.exit_code}) and is started"
                    f" again; its log: {process.spec.log_file}"
                )
        await change.wait()


def _ca(options: StackOptions) -> Path | None:
    return None if options.tls is None else options.tls.ca_for(options.reachable_host)


def _summary(stack: LocalStack, model: ModelChoice, can_chat: bool, steps: Steps) -> Ready:
    return Ready(
        model=model.name,
        device=model.device,
        has_chat_template=can_chat,
        urls=stack.urls,
        data_dir=stack.data.root,
        log_dir=stack.data.logs,
        pid=os.getpid(),
        seconds=sum(steps.seconds.values()),
        step_seconds=steps.seconds,
        makes_embeddings=stack.makes_embeddings,
        ca=_ca(stack.options),
    )
