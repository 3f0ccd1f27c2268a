"""The real torch_npu wheel, unpacked in a folder of its own: nothing here ever installs it.

Installed, it would hook into every `import torch` of the environment.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REQUIREMENT = "torch_npu==2.13.0"
DOWNLOAD_SECONDS_MAX = 300


class WheelError(RuntimeError):
    """The wheel could not be had; the message says what to look at."""


def unpacked_wheel(cache: Path) -> Path:
    """The folder to put on sys.path; downloads and unpacks where it is not there yet."""
    target = cache / "torch_npu"
    if target.is_dir():
        return target
    downloads, fresh = cache / "downloads", cache / "torch_npu.part"
    _download(downloads)
    shutil.rmtree(fresh, ignore_errors=True)
    (wheel,) = downloads.glob("torch_npu-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(fresh)
    fresh.rename(target)  # last: a folder that is there is whole
    shutil.rmtree(downloads)
    return target


def _download(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    try:
        done = subprocess.run(
            [*command, REQUIREMENT], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS_MAX
        )
    except subprocess.TimeoutExpired:
        raise WheelError(
            f"pip did not fetch {REQUIREMENT} within {DOWNLOAD_SECONDS_MAX} seconds"
        ) from None
    if done.returncode:
        raise WheelError(
            f"pip could not fetch {REQUIREMENT}: it exists for CPython 3.11 on Linux, and pip "
            f"needs an index that has it (see 'pip config list')\n{done.stderr.strip()}"
        )
