"""How many blocks the tiers of a Load have, and whoever moves them."""

import shutil
from pathlib import Path
from typing import NamedTuple

from deepflow.core.parallel import Place
from deepflow.core.sizes import format_bytes
from services.task_executor.devices.cpu.memory import memory_available
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.tiers.base import DeviceBlocks, TierMover
from services.task_executor.flowserve.tiers.cost_file import CostFile
from services.task_executor.flowserve.tiers.disk_blocks import ALONE, HEADER_BYTES, DiskBlocks
from services.task_executor.flowserve.tiers.disk_folder import open_folder, usual_folder
from services.task_executor.flowserve.tiers.dram_blocks import DramBlocks
from services.task_executor.flowserve.tiers.mover import ThreadedMover

# More only makes the index large: half a gigabyte of it.
TIER_BLOCKS_MAX = 1 << 20


class Tiers(NamedTuple):
    mover: TierMover
    costs: CostFile


class Stores(NamedTuple):
    """The tiers of one rank behind its device; None where one does not exist."""

    dram: DramBlocks | None
    disk: DiskBlocks | None


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


def has_tiers(config: EngineConfig) -> bool:
    """Is there any but the device?"""
    return bool(config.kv_dram_blocks or config.kv_disk_blocks)


def build_tiers(config: EngineConfig, blocks: DeviceBlocks, load: Load) -> Tiers | None:
    """Of an engine of one rank. Raises ValueError where the disk has no room."""
    if not has_tiers(config):
        return None
    folder = prepare_folder(config, load, blocks.block_bytes)
    stores = open_stores(config, blocks.block_bytes, folder)
    return Tiers(ThreadedMover(blocks, *stores), CostFile(folder, config, load.device))


def prepare_folder(config: EngineConfig, load: Load, block_bytes: int, *, ranks: int = 1) -> Path:
    """Where what is kept goes. `block_bytes`: of one block on all ranks together.

    Raises ValueError where there must be such a folder and it cannot be had, or has no room.
    """
    folder = Path(load.kv_disk_folder) if load.kv_disk_folder else usual_folder()
    if config.kv_disk_blocks:
        _open_folder(folder)
        _require_room(folder, config.kv_disk_blocks * disk_block_bytes(block_bytes, ranks))
    return folder


def open_stores(
    config: EngineConfig, block_bytes: int, folder: Path, place: Place = ALONE
) -> Stores:
    """The farther tiers of one rank; `block_bytes`: of its share. Raises ValueError."""
    disk = None
    if config.kv_disk_blocks:
        try:
            disk = DiskBlocks(folder, place)
        except OSError as error:
            raise ValueError(f"kv_disk_folder {folder}: {error.strerror}") from error
    dram = DramBlocks(config.kv_dram_blocks, block_bytes) if config.kv_dram_blocks else None
    return Stores(dram, disk)


def disk_block_bytes(block_bytes: int, ranks: int = 1) -> int:
    """What a block takes on disk, a file for each rank."""
    return ranks * HEADER_BYTES + block_bytes


def _open_folder(folder: Path) -> None:
    """Raises ValueError."""
    try:
        open_folder(folder)
    except OSError as error:
        raise ValueError(f"kv_disk_folder {folder}: {error.strerror}") from error


def _require_room(folder: Path, disk_bytes: int) -> None:
    """Raises ValueError."""
    free = shutil.disk_usage(folder).free
    if disk_bytes > free:
        raise ValueError(
            f"kv_disk_bytes: {format_bytes(disk_bytes)} do not fit into {folder}, where"
            f" {format_bytes(free)} are free"
        )
