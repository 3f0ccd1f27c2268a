"""`make test-npu`: fetch torch_npu, build what it misses, run every test file in a process.

A process each, for torch_npu's state is the process's: captures, streams, process groups.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.npu.fake_cann.build import ToolsMissing, built_libraries
from tests.npu.wheel import WheelError, unpacked_wheel

FILE_SECONDS_MAX = 900


def environment(wheel: Path, libraries: Path) -> dict[str, str]:
    return os.environ | {
        "DEEPFLOW_FAKE_CANN": str(libraries),
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": str(wheel),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # only who asks for it
        "TASK_QUEUE_ENABLE": "0",  # launch in the calling thread
        "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.npu", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".npu"), help="keeps wheel and stubs")
    parser.add_argument("names", nargs="*", help="words in the names of the files to run")
    options = parser.parse_args()
    try:
        wheel = unpacked_wheel(options.cache.resolve())
        libraries = built_libraries(wheel, options.cache.resolve())
    except (WheelError, ToolsMissing) as error:
        sys.stderr.write(f"test-npu cannot run: {error}\n")
        return 1
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    chosen = [it for it in files if not options.names or any(n in it.name for n in options.names)]
    return max((_run(file, environment(wheel, libraries)) for file in chosen), default=1)


def _run(file: Path, env: dict[str, str]) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    try:
        return subprocess.run(command, env=env, timeout=FILE_SECONDS_MAX).returncode
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"{file.name} took longer than {FILE_SECONDS_MAX} seconds\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
