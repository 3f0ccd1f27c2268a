"""Run the engine: `python -m services.task_executor.flowserve --inbox FD,FD,FD --outbox FD,FD,FD`.

The shell starts it and passes the descriptors of two rings. It ends on Stop, on SIGTERM and when
its parent dies; SIGINT is the shell's to handle, though a terminal sends it to both.
"""

import argparse
import logging
import os
import signal
import sys

from deepflow import logs
from services.task_executor.devices.torch_import import import_torch
from services.task_executor.flowserve.engine_process import EngineProcess, ParentLost
from services.task_executor.flowserve.failed_steps import EngineBroken
from services.task_executor.flowserve.process_arguments import add_process_arguments
from services.task_executor.flowserve.ring import Ring

log = logging.getLogger(__name__)

EXIT_PARENT_LOST = 4
EXIT_BROKEN = 5


def main() -> int:
    arguments = _parse_arguments()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # At once: a thread in the middle of a step does not survive the end of its interpreter.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    logs.configure_logging(
        "engine", arguments.id, level=arguments.log_level, log_format=arguments.log_format
    )
    logs.say_always(pid=os.getpid())
    process = EngineProcess(Ring.open(arguments.inbox), Ring.open(arguments.outbox))
    try:
        if arguments.preload:
            with process.report("import_torch"):
                import_torch()
        process.run()
    except ParentLost:
        return EXIT_PARENT_LOST
    except EngineBroken as error:
        log.critical("the engine ends: %s", error)
        logging.shutdown()
        # At once, and every rank with it: a thread of ours may wait for one that is gone.
        os._exit(EXIT_BROKEN)
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.task_executor.flowserve")
    add_process_arguments(parser)
    parser.add_argument(
        "--preload", choices=["torch"], help="import this before the first model is known"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
