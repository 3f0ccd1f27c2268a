"""`make test-cuda`: the cuda device without a card, every test file in a process of its own.

Triton decides for a whole process whether it interprets its kernels on the CPU or compiles them,
and no other test should run in one that interprets.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

FILE_SECONDS_MAX = 1800
TEST_SECONDS_MAX = 600  # the interpreter is slow where others work, too
COMPILING = "test_compiling.py"


def environment(file: Path, cache: str) -> dict[str, str]:
    interpreted = {} if file.name == COMPILING else {"TRITON_INTERPRET": "1"}
    return os.environ | {"DEEPFLOW_TEST_TRITON": "1", "TRITON_CACHE_DIR": cache} | interpreted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda", description=__doc__)
    parser.add_argument("names", nargs="*", help="words in the names of the files to run")
    options = parser.parse_args()
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.stderr.write("test-cuda is left out: triton has wheels for Linux on x86-64 only\n")
        return 0
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    chosen = [it for it in files if not options.names or any(n in it.name for n in options.names)]
    with tempfile.TemporaryDirectory() as cache:
        return max((_run(file, environment(file, cache)) for file in chosen), default=1)


def _run(file: Path, env: dict[str, str]) -> int:
    options = ["-q", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS_MAX}"]
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    try:
        return subprocess.run(command, env=env, timeout=FILE_SECONDS_MAX).returncode
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"{file.name} took longer than {FILE_SECONDS_MAX} seconds\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
