from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.stack import ANSWER_SECONDS_MAX, Stack, running_stack

# A stack is a dozen processes, and so are the commands of one test: a busy machine takes its time.
PATIENCE = pytest.mark.timeout(600)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(PATIENCE)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The demo model on the CPU, as `make up` starts it."""
    with running_stack(tmp_path_factory.mktemp("e2e") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=ANSWER_SECONDS_MAX) as client:
        yield client


@pytest.fixture(scope="session")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    from deepflow.demo import MODEL_DIR

    return MODEL_DIR
