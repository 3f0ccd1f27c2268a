"""Run a further rank: `python -m services.task_executor.flowserve.ranks --rank N --inbox …`.

Its engine starts it, passes the descriptors of two rings, and takes it with it when it dies.
"""

import argparse
import logging
import os
import signal

from deepflow import logs
from services.task_executor.devices.torch_import import import_torch
from services.task_executor.flowserve.process_arguments import add_process_arguments
from services.task_executor.flowserve.ring import Ring

log = logging.getLogger(__name__)

EXIT_FAILED = 1


def main() -> int:
    arguments = _parse_arguments()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.configure_logging(
        f"rank-{arguments.rank}",
        arguments.id,
        level=arguments.log_level,
        log_format=arguments.log_format,
    )
    logs.say_always(pid=os.getpid())
    import_torch()
    # Late: imports torch, and that only with patient threads.
    from services.task_executor.flowserve.ranks.rank_process import RankProcess

    try:
        RankProcess(Ring.open(arguments.inbox), Ring.open(arguments.outbox)).run()
    except Exception:
        log.exception("the rank ends")
        return EXIT_FAILED
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.task_executor.flowserve.ranks")
    add_process_arguments(parser)
    parser.add_argument("--rank", type=int, required=True, help="from 1; rank 0 is the engine")
    return parser.parse_args()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Whatever torch would still wait for at its end has no one left to wait for.
    os._exit(code)
