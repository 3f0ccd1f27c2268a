"""The first import of torch in a process: late, for it takes seconds, and with patient threads."""

import importlib
import os

# Long enough for a thread that runs beside us, too short to matter where it waits for a core.
SPIN_COUNT = "3000"


def import_torch() -> None:
    """Import torch so that its threads do not spin for long while they wait for one another.

    By default they spin for milliseconds. Where the cores have other work too, as in every local
    stack, one thread then spins on a core that the other one lacks. OpenMP reads this once, when
    torch loads it; who has set it knows better.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    importlib.import_module("torch")
