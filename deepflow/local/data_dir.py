"""The folder of one stack: its secrets, ports, logs and data, held by one process at a time."""

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from msgspec import Struct

from deepflow.local.errors import StackAlreadyRuns, StackError
from deepflow.local.ports import keep_or_choose

SECRET_BYTES = 24

T = TypeVar("T")


class Secrets(Struct, frozen=True, forbid_unknown_fields=True):
    """Made once, kept over restarts, read by the owner only."""

    cluster_token: str
    nats_password: str
    redis_password: str


class Ports(Struct, frozen=True, forbid_unknown_fields=True):
    """Chosen once; kept for as long as nobody else takes one while the stack is down."""

    nats: int = 0
    redis: int = 0
    kv_store: int = 0
    kv_store_health: int = 0
    cluster_manager: int = 0
    cluster_manager_health: int = 0
    # Port and health port of each further cluster manager.
    standbys: tuple[int, ...] = ()

    @property
    def all(self) -> tuple[int, ...]:
        *singles, _ = self.__struct_fields__
        return (*(getattr(self, name) for name in singles), *self.standbys)


class DataDir:
    """Paths and what is stored under them."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.logs = self.root / "logs"
        self.nats = self.root / "nats"
        self.redis = self.root / "redis"
        self.socket = self.root / "supervisor.sock"
        self._secrets = self.root / "secrets.json"
        self._ports = self.root / "ports.json"
        self._lock = self.root / "supervisor.lock"
        self._lock_fd = -1

    @classmethod
    def default(cls) -> Self:
        return cls(default_root())

    def log_file(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def acquire(self, url: str) -> None:
        """Become the one process of this folder. Raises StackAlreadyRuns naming who is."""
        try:
            for folder in (self.root, self.logs, self.nats, self.redis):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StackError(
                f"cannot use {self.root}: {error.strerror}; choose another folder with --data-dir"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StackAlreadyRuns(self._who_runs()) from error
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "url": url}).encode())
        self._lock_fd = descriptor

    def release(self) -> None:
        """The file stays: to remove it would let two processes hold two locks of one name."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    @property
    def is_held(self) -> bool:
        """Whether a stack runs here, seen from another process."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def read_secrets(self) -> Secrets:
        """Those of this folder, made where there are none."""
        if self._secrets.exists():
            return _read(self._secrets, Secrets)
        made = Secrets(*(secrets.token_urlsafe(SECRET_BYTES) for _ in range(3)))
        write_private(self._secrets, msgspec.json.encode(made))
        return made

    def choose_ports(self, cluster_managers: int = 1, *, besides: int = 0) -> Ports:
        """The ports of the last run, each replaced where somebody else took it.

        `besides` is promised to a gateway that does not listen yet.
        """
        former = _read(self._ports, Ports) if self._ports.exists() else Ports()
        *singles, _ = Ports.__struct_fields__
        count = 2 * (cluster_managers - 1)
        standbys = (*former.standbys, *[0] * count)[:count]
        wanted = [*(getattr(former, name) for name in singles), *standbys]
        free = [0 if port == besides else port for port in wanted]
        _, *chosen = keep_or_choose([besides, *free])
        known = dict(zip(singles, chosen, strict=False))
        ports = msgspec.convert(known | {"standbys": chosen[len(singles) :]}, Ports)
        write_private(self._ports, msgspec.json.encode(ports))
        return ports

    @property
    def is_new_record_space(self) -> bool:
        """Whether no record was ever kept here; False also where records were lost."""
        return not self._initialised.exists()

    def record_space_is_made(self) -> None:
        self._initialised.touch(mode=0o600)

    @property
    def _initialised(self) -> Path:
        return self.root / "records.initialised"

    def _who_runs(self) -> str:
        hint = "stop it with 'deepflow down', or choose another folder with --data-dir"
        try:
            holder = json.loads(self._lock.read_text())
            return f"a stack runs already: process {holder['pid']} at {holder['url']}; {hint}"
        except (OSError, ValueError, KeyError):
            return f"a stack runs already in {self.root}; {hint}"


def default_root() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "deepflow"


def write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    temporary = path.with_suffix(path.suffix + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise StackError(
            f"cannot read {path}: {error}; mend it, or remove the folder to begin anew"
        ) from error
