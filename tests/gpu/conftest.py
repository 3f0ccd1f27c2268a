"""`make test-gpu`: what only a card can show. Without one every test here is skipped, and says so.

Nothing here imports the device's kernels by name: the device comes from the registry, opened.
"""

from collections.abc import Iterator

import pytest
import torch

from services.task_executor.devices.base import Device
from tests.gpu.opened import DEVICE, opened, why_not


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := why_not()):
        pytest.skip(f"the device {DEVICE} cannot be opened here: {reason}")


@pytest.fixture
def device() -> Device:
    """In fp32, so that the CPU can be its reference."""
    return opened("float32")


@pytest.fixture
def two_cards() -> None:
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"two ranks want a card each, but {count} can be seen")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of the reference on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
