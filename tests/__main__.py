"""`make test`: every test once, and a second look at one that fell beside real processes.

Tests of decisions have no excuse. One that runs servers and kills processes may meet a machine that
does something else for a minute: it is run once more, alone, and what it said stays in the output.
A test that needed it is a defect to find; more than a few at once are no accident.
"""

import subprocess
import sys

import pytest

SECOND_LOOKS_MAX = 2
ROOMS = ("tests/integration/", "tests/e2e/", "tests/chaos/", "tests/shipping/")


class Failures:
    """A pytest plugin that keeps the names of what failed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.names:
            self.names.append(report.nodeid)


def deserve_a_second_look(names: list[str]) -> bool:
    return 0 < len(names) <= SECOND_LOOKS_MAX and all(it.startswith(ROOMS) for it in names)


def main(arguments: list[str]) -> int:
    failures = Failures()
    code = int(pytest.main(arguments, plugins=[failures]))
    if code != pytest.ExitCode.TESTS_FAILED or not deserve_a_second_look(failures.names):
        return code
    listed = "".join(f"\n  {it}" for it in failures.names)
    _say(f"A second look, alone, at what failed once:{listed}\n")
    # Another process: nothing of the first one is left in it.
    again = subprocess.run([sys.executable, "-m", "pytest", "-q", *failures.names])
    if again.returncode == 0:
        _say(f"UNSTEADY, passed at the second look (find out why):{listed}")
    return again.returncode


def _say(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()  # before others write


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
