"""Blocks on disk: a file each, which says whose block it is and proves that it is whole.

    [magic 8][place 8][identity 16][tokens' digest 16][data's length u64][data's xxh3 u64][data]

The place says which share of the block it is: part of how many, stage of how many. What does not
say and prove it all is no block: a file that is short, damaged, foreign or missing is a miss.

Every life of a rank has a folder of its own, which it locks and empties: what an earlier life left
is removed at the start, for a cold start that reads nothing is quicker than one that must check
what it finds, and the index in which the files were known is gone with the process anyway. Where
somebody removes that folder, the next block that is written begins another.
"""

import logging
import os
import shutil
import struct
from pathlib import Path

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from deepflow.core.parallel import Layout, Place
from services.task_executor.flowserve.rtc.copies import BlockCopy
from services.task_executor.flowserve.tiers.disk_folder import new_life, open_folder

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<8s8s16s16sQQ")
_PLACE = struct.Struct("<4H")
_MAGIC = b"DFKVBLK2"
HEADER_BYTES = _HEADER.size
ALONE = Place(Layout(), 0)


class BadBlock(ValueError):
    """The file is not the block that was asked for."""


class DiskBlocks:
    def __init__(self, folder: Path, place: Place = ALONE) -> None:
        """Raises OSError where the folder cannot be had."""
        layout = place.layout
        self._place = _PLACE.pack(place.part, layout.tensor, place.stage, layout.pipeline)
        self._around, self._name = folder, f"rank-{place.rank}"
        self.folder, self._lock = self._begin()

    def write(self, copy: BlockCopy, data: memoryview) -> None:
        """For one thread at a time. Raises OSError where the disk does not take it."""
        try:
            self._write(copy, data)
        except FileNotFoundError:
            self._begin_anew()
            self._write(copy, data)

    def read(self, copy: BlockCopy, into: memoryview) -> None:
        """Raises BadBlock or OSError."""
        with self._path(copy.source_block).open("rb", buffering=0) as file:
            header = file.read(HEADER_BYTES)
            if _read_all(file.fileno(), into) != len(into) or file.read(1):
                raise BadBlock("its length is wrong")
        if header != self._header(copy, into):
            raise BadBlock("it is damaged, or another block")

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _begin(self) -> tuple[Path, int]:
        open_folder(self._around)
        return new_life(self._around, self._name)

    def _begin_anew(self) -> None:
        removed, lock = self.folder, self._lock
        self.folder, self._lock = self._begin()
        os.close(lock)
        log.warning("%s was removed, with the KV in it: %s is in its place", removed, self.folder)

    def _write(self, copy: BlockCopy, data: memoryview) -> None:
        path = self._path(copy.target_block)
        with path.open("wb", buffering=0) as file:
            try:
                for part in (memoryview(self._header(copy, data)), data):
                    _write_all(file.fileno(), part)
            except OSError:  # a part of a block is none, and others need the room
                path.unlink(missing_ok=True)
                raise

    def _path(self, block: int) -> Path:
        return self.folder / f"{block}.kv"

    def _header(self, copy: BlockCopy, data: memoryview) -> bytes:
        tokens, checksum = xxh3_128_digest(copy.content), xxh3_64_intdigest(data)
        return _HEADER.pack(_MAGIC, self._place, copy.identity, tokens, len(data), checksum)


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


def _read_all(descriptor: int, into: memoryview) -> int:
    done = 0
    while done < len(into) and (count := os.readv(descriptor, [into[done:]])):
        done += count
    return done
