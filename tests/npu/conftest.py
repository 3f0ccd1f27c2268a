"""These tests need the stubbed CANN libraries: `make test-npu` runs them, each file by itself."""

import os
import warnings
from collections.abc import Iterator

import pytest

IS_STUBBED = bool(os.environ.get("DEEPFLOW_FAKE_CANN"))
collect_ignore_glob = [] if IS_STUBBED else ["test_*.py"]

if IS_STUBBED:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no toolkit
        import torch_npu  # noqa: F401


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
