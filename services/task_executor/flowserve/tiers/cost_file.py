"""What fetching and computing were seen to cost on this machine, kept from one life to the next.

A file a model and device; only a hint, so one that cannot be read or written changes nothing.
"""

import logging
import os
from pathlib import Path

import msgspec
from xxhash import xxh3_128_hexdigest

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.rtc.fetch_costs import CostRecord, FetchCosts

log = logging.getLogger(__name__)

FILES_MAX = 64  # the oldest go
FILE_BYTES_MAX = 64 << 10
_PATTERN = "costs-*.json"


class CostFile:
    def __init__(self, folder: Path, config: EngineConfig, device: str) -> None:
        what = (
            device,
            config.model_revision,
            config.dtype,
            config.kv_dtype,
            config.kv_layout,
            str(config.block_size),
        )
        name = xxh3_128_hexdigest("\0".join(what).encode())
        self._path = folder / f"costs-{name}.json"

    def read(self) -> FetchCosts:
        """Nothing known where there is no good file."""
        try:
            with self._path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX)
            return FetchCosts.from_record(msgspec.json.decode(content, type=CostRecord))
        except (OSError, ValueError):  # msgspec's errors among them
            return FetchCosts()

    def write(self, costs: FetchCosts) -> None:
        new = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new.write_bytes(msgspec.json.encode(costs.record()))
            new.replace(self._path)
            self._forget_old()
        except OSError as error:
            log.warning("what KV costs to fetch is not kept: %s", error)

    def _forget_old(self) -> None:
        files = sorted(self._path.parent.glob(_PATTERN), key=lambda it: it.stat().st_mtime)
        for file in files[:-FILES_MAX]:
            file.unlink(missing_ok=True)
