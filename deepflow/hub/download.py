"""One file: goes on where it was cut, and is only given its name once its checksum is right."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx

from deepflow.core.repository import Repository
from deepflow.hub.client import HubClient
from deepflow.hub.errors import BadAnswer, HubError
from deepflow.hub.listing import HubFile

CHUNK_BYTES = 1 << 20
# Failures in a row without a single new byte between them.
FAILURES_MAX = 5
PAUSE_FIRST_SECONDS = 0.5
PAUSE_MAX_SECONDS = 8.0
PART_SUFFIX = ".part"


class FileDownload:
    """Its part lies beside the target, and survives this process."""

    def __init__(
        self,
        client: HubClient,
        repository: Repository,
        commit: str,
        file: HubFile,
        target: Path,
        *,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._repository = repository
        self._commit = commit
        self._file = file
        self._target = target
        self._part = part_of(target)
        self._pause = pause
        self._digest = _new_digest(file)
        self._offset = 0

    def run(self, tell: Callable[[int], None]) -> None:
        """`tell` hears how many bytes are there. Raises HubError."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._part.open("r+b" if self._part.exists() else "w+b") as part:
                self._take_in(part)
                tell(self._offset)
                self._complete(part, tell)
                part.flush()
                os.fsync(part.fileno())
        except OSError as error:
            raise _cannot_write(self._part, error) from error
        self._check()
        self._part.replace(self._target)

    def _take_in(self, part: BinaryIO) -> None:
        """What a run before has left; more than the whole file is nobody's."""
        if os.fstat(part.fileno()).st_size > self._file.size:
            self._start_over(part)
        while chunk := part.read(CHUNK_BYTES):
            self._digest.update(chunk)
            self._offset += len(chunk)

    def _complete(self, part: BinaryIO, tell: Callable[[int], None]) -> None:
        failures, furthest = 0, self._offset
        while self._offset < self._file.size:
            error: Exception
            try:
                self._receive(part, tell)
                error = BadAnswer(f"{self._file.path} ended early")
            except (httpx.TransportError, _TryAgain) as failure:
                error = failure
            if self._offset == self._file.size:
                return
            # Who has to begin again each time, a little further or less far, gets nowhere.
            failures = 1 if self._offset > furthest else failures + 1
            furthest = max(furthest, self._offset)
            if failures >= FAILURES_MAX:
                raise self._client.offline(error) from error
            self._pause(min(PAUSE_FIRST_SECONDS * 2 ** (failures - 1), PAUSE_MAX_SECONDS))

    def _receive(self, part: BinaryIO, tell: Callable[[int], None]) -> None:
        where = (self._repository, self._commit, self._file.path, self._offset)
        with self._client.open(*where) as answer:
            if answer.status_code >= 500 or answer.status_code == 416:
                if answer.status_code == 416:
                    self._start_over(part)
                raise _TryAgain(f"the hub answered with {answer.status_code}")
            self._client.check(answer, self._repository)
            if not self._is_continuation(answer):
                self._start_over(part)
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                self._append(part, chunk)
                tell(self._offset)

    def _append(self, part: BinaryIO, chunk: bytes) -> None:
        if self._offset + len(chunk) > self._file.size:
            self._start_over(part)
            raise BadAnswer(f"{self._file.path} is longer than the hub lists it: fetch it again")
        part.write(chunk)
        self._digest.update(chunk)
        self._offset += len(chunk)

    def _is_continuation(self, answer: httpx.Response) -> bool:
        """Some servers know no ranges and send everything again."""
        if self._offset == 0:
            return True
        sent = answer.headers.get("content-range", "")
        return answer.status_code == 206 and sent.startswith(f"bytes {self._offset}-")

    def _start_over(self, part: BinaryIO) -> None:
        part.seek(0)
        part.truncate()
        self._digest = _new_digest(self._file)
        self._offset = 0

    def _check(self) -> None:
        if self._digest.hexdigest() == (self._file.sha256 or self._file.git_sha1):
            return
        self._part.unlink(missing_ok=True)
        raise HubError(
            f"{self._file.path} of {self._repository.id} arrived damaged (its checksum is wrong)"
            " and was removed: fetch it again"
        )


class _TryAgain(Exception):
    pass


def part_of(target: Path) -> Path:
    return target.with_name(target.name + PART_SUFFIX)


def _new_digest(file: HubFile) -> "hashlib._Hash":
    """Small files are known by the name that git gives their content."""
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _cannot_write(path: Path, error: OSError) -> HubError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError(f"the disk of {path.parent} is full; what arrived so far is kept")
    return HubError(f"cannot write {path}: {error.strerror or error}")
