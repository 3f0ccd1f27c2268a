"""`make test-cuda` runs these: Triton decides for a process whether it interprets its kernels."""

import os
from collections.abc import Iterator

import pytest

# Set by `python -m tests.cuda`.
collect_ignore_glob = [] if os.environ.get("DEEPFLOW_TEST_TRITON") else ["test_*.py"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
