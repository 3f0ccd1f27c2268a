"""The routes of a model hub that are needed here, and its refusals in words for people."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from deepflow import __version__
from deepflow.core.repository import Repository
from deepflow.hub.errors import BadAnswer, HubError, Offline
from deepflow.hub.listing import Listing, parse_listing

DEFAULT_ENDPOINT = "https://huggingface.co"
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
ANSWER_BYTES_MAX = 32 << 20


@dataclass(frozen=True, slots=True)
class HubSettings:
    """The variables that every tool for the hub reads."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str = field(default="", repr=False)
    is_offline: bool = False

    @classmethod
    def from_environment(cls) -> "HubSettings":
        return cls(
            endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT,
            token=os.environ.get("HF_TOKEN", "").strip(),
            is_offline=os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"),
        )


class HubClient:
    """The token goes to the hub alone: httpx drops it where a redirect leads elsewhere."""

    def __init__(self, settings: HubSettings) -> None:
        headers = {"user-agent": f"deepflow/{__version__}", "accept-encoding": "identity"}
        if settings.token:
            headers["authorization"] = f"Bearer {settings.token}"
        self._settings = settings
        try:
            self._http = httpx.Client(
                base_url=settings.endpoint,
                headers=headers,
                follow_redirects=True,
                timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise HubError(f"HF_ENDPOINT {settings.endpoint!r} is no web address") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def list_files(self, repository: Repository) -> Listing:
        """Raises HubError; Offline where nobody answers."""
        revision = quote(repository.revision, safe="")
        path = f"/api/models/{repository.id}/revision/{revision}?blobs=true"
        try:
            with self._http.stream("GET", path) as answer:
                self.check(answer, repository)
                return parse_listing(_read_json(answer))
        except httpx.TransportError as error:
            raise self.offline(error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise BadAnswer(f"{self._settings.endpoint}: {error}") from error

    @contextmanager
    def open(
        self, repository: Repository, commit: str, path: str, offset: int
    ) -> Iterator[httpx.Response]:
        """The file from `offset` on, or from its start where the server will not do that.

        Raises httpx.TransportError where the connection fails: trying again may help.
        """
        headers = {"range": f"bytes={offset}-"} if offset else {}
        url = f"/{repository.id}/resolve/{commit}/{quote(path)}"
        try:
            with self._http.stream("GET", url, headers=headers) as answer:
                yield answer
        except httpx.TransportError:
            raise
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # redirects without end, and the like
            raise BadAnswer(f"{self._settings.endpoint}: {error}") from error

    def check(self, answer: httpx.Response, repository: Repository) -> None:
        """Raises HubError for a refusal."""
        status = answer.status_code
        if status < 400:
            return
        code = answer.headers.get("x-error-code", "")
        if code == "GatedRepo":
            raise HubError(self._gated(repository))
        if code == "RevisionNotFound":
            raise HubError(f"{repository.id} has no revision {repository.revision!r}")
        if status in (401, 403) and self._settings.token:
            raise HubError(f"{repository.id} cannot be read with this HF_TOKEN, or does not exist")
        if status in (401, 403, 404):
            raise HubError(
                f"{repository.id} was not found at {self._settings.endpoint}; a private model"
                " needs HF_TOKEN to be set"
            )
        if status == 429:
            raise HubError(f"{self._settings.endpoint} asks to come back later (too many requests)")
        raise HubError(f"{self._settings.endpoint} answered with {status} for {repository}")

    def offline(self, error: Exception) -> Offline:
        return Offline(
            f"{self._settings.endpoint} cannot be reached ({error or type(error).__name__}): check"
            " the network, or give the folder of a model that is on this machine"
        )

    def _gated(self, repository: Repository) -> str:
        page = f"{self._settings.endpoint}/{repository.id}"
        if self._settings.token:
            return f"{repository.id} is gated and not granted to this HF_TOKEN: ask at {page}"
        return (
            f"{repository.id} is gated: accept its terms at {page}, then set HF_TOKEN to a token"
            " of that account"
        )


def _read_json(answer: httpx.Response) -> object:
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > ANSWER_BYTES_MAX:
            raise BadAnswer(f"the hub's answer is over {ANSWER_BYTES_MAX} bytes")
    try:
        return json.loads(content)
    except ValueError as error:
        raise BadAnswer("the hub's answer is no JSON: is HF_ENDPOINT a model hub?") from error
