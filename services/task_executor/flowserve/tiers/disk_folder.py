"""The folder on disk in which every life of a rank has one of its own."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIFE_PREFIX = "life-"
_LOCK = "in-use"


def usual_folder() -> Path:
    """Where all users have one each."""
    return Path(tempfile.gettempdir()) / f"deepflow-kv-{os.getuid()}"


def open_folder(folder: Path) -> None:
    """Make it where it is not there, and remove what former lives left.

    Where all users share what is around it nobody else's is taken: he could change what we read.
    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    is_foreign = folder.is_symlink() or folder.stat().st_uid != os.getuid()
    if is_foreign and folder == usual_folder():
        raise PermissionError(errno.EPERM, "it belongs to somebody else: name another")
    _remove_former_lives(folder)


def new_life(folder: Path, name: str) -> tuple[Path, int]:
    """A folder in it, and a descriptor that holds its lock. Raises OSError."""
    with _alone_in(folder):
        life = Path(tempfile.mkdtemp(prefix=f"{LIFE_PREFIX}{name}-", dir=folder))
        lock = _lock(life)
    if lock is None:
        raise FileNotFoundError(errno.ENOENT, "it was removed as soon as it was made")
    return life, lock


def _remove_former_lives(folder: Path) -> None:
    """Whoever lives holds a lock, which the kernel drops however he ends."""
    with _alone_in(folder):
        for entry in folder.glob(f"{LIFE_PREFIX}*"):
            lock = _lock(entry)
            if lock is not None:
                shutil.rmtree(entry, ignore_errors=True)
                os.close(lock)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Ranks start at once: a folder that one has made and not yet locked looks like a former life
    to the others."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock; None where somebody else does, or the folder is gone."""
    try:
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
