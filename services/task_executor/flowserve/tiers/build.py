"""How many blocks the tiers of a Load have, and whoever moves them."""

import shutil
import tempfile
from os import getuid
from pathlib import Path
from typing import NamedTuple

from deepflow.core.sizes import format_bytes
from services.task_executor.devices.cpu.memory import memory_available
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.tiers.base import DeviceBlocks, TierMover
from services.task_executor.flowserve.tiers.cost_file import CostFile
from services.task_executor.flowserve.tiers.disk_blocks import HEADER_BYTES, DiskBlocks
from services.task_executor.flowserve.tiers.dram_blocks import DramBlocks
from services.task_executor.flowserve.tiers.mover import ThreadedMover

# More only makes the index large: half a gigabyte of it.
TIER_BLOCKS_MAX = 1 << 20
FOLDER_DEFAULT = "deepflow-kv"


class Tiers(NamedTuple):
    mover: TierMover
    costs: CostFile


def count_blocks(setting: str, size: int, block_bytes: int) -> int:
    """How many blocks fit into so many bytes. Raises ValueError, which names the setting."""
    blocks = size // block_bytes
    if size and not blocks:
        raise ValueError(
            f"{setting} is {format_bytes(size)}, but a block takes {format_bytes(block_bytes)}"
        )
    if blocks > TIER_BLOCKS_MAX:
        raise ValueError(
            f"{setting} is {format_bytes(size)}, but a tier has at most {TIER_BLOCKS_MAX} blocks"
            f" ({format_bytes(TIER_BLOCKS_MAX * block_bytes)} here)"
        )
    return blocks


def require_memory(dram_bytes: int) -> None:
    """Raises ValueError where the host does not have as much."""
    if dram_bytes > (available := memory_available()):
        raise ValueError(
            f"kv_dram_bytes is {format_bytes(dram_bytes)}, but the host has"
            f" {format_bytes(available)} of memory free"
        )


def build_tiers(config: EngineConfig, blocks: DeviceBlocks, load: Load) -> Tiers | None:
    """None where there is no tier but the device. Raises ValueError where the disk has no room."""
    if not (config.kv_dram_blocks or config.kv_disk_blocks):
        return None
    folder = _folder_of(load)
    disk = None
    if config.kv_disk_blocks:
        _open_folder(folder, is_shared=not load.kv_disk_folder)
        disk = _open_disk(folder, config.kv_disk_blocks, blocks)
    dram = None
    if config.kv_dram_blocks:
        dram = DramBlocks(config.kv_dram_blocks, blocks.block_bytes)
    return Tiers(ThreadedMover(blocks, dram, disk), CostFile(folder, config, load.device))


def disk_block_bytes(block_bytes: int) -> int:
    return HEADER_BYTES + block_bytes


def _folder_of(load: Load) -> Path:
    usual = Path(tempfile.gettempdir()) / f"{FOLDER_DEFAULT}-{getuid()}"
    return Path(load.kv_disk_folder) if load.kv_disk_folder else usual


def _open_folder(path: Path, *, is_shared: bool) -> None:
    """Where all users share what is around it nobody else's is taken: he could change what we read.

    Raises ValueError.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_shared and (path.is_symlink() or path.stat().st_uid != getuid()):
            raise ValueError(f"kv_disk_folder {path} belongs to somebody else: name another")
    except OSError as error:
        raise ValueError(f"kv_disk_folder {path}: {error.strerror}") from error


def _open_disk(path: Path, blocks: int, device: DeviceBlocks) -> DiskBlocks:
    disk_bytes = blocks * disk_block_bytes(device.block_bytes)
    try:
        disk = DiskBlocks(path, device.block_bytes)
    except OSError as error:
        raise ValueError(f"kv_disk_folder {path}: {error.strerror}") from error
    free = shutil.disk_usage(path).free
    if disk_bytes > free:
        disk.close()
        raise ValueError(
            f"kv_disk_bytes: {format_bytes(disk_bytes)} do not fit into {path}, where"
            f" {format_bytes(free)} are free"
        )
    return disk
