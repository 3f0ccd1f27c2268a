"""A chat with one model over a gateway's OpenAI API, streamed."""

import contextlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from deepflow.tls import BadCertificate, trust_exactly

READ_SECONDS_MAX = 120.0


class ChatError(Exception):
    """A sentence: what the gateway said, or that there is none."""


class Conversation:
    def __init__(
        self,
        url: str,
        model: str | None,
        max_tokens: int,
        temperature: float,
        api_key: str = "",
        certificate: Path | None = None,
    ) -> None:
        """`certificate` is the gateway's own where that is known: no other is trusted then."""
        base = url.rstrip("/").removesuffix("/v1")
        if not base.startswith(("http://", "https://")):
            raise ChatError(f"--url {url} is no web address: it begins with http:// or https://")
        self._client = httpx.Client(
            base_url=base,
            verify=_trust(certificate),
            timeout=httpx.Timeout(READ_SECONDS_MAX),
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
        )
        self._settings = {"max_tokens": max_tokens, "temperature": temperature}
        self._messages: list[dict[str, str]] = []
        self.model = model or self._first_model()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, question: str) -> Iterator[str]:
        """Pieces of the answer as they come; the talk remembers a whole one."""
        messages = [*self._messages, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "stream": True, **self._settings}
        answer = ""
        with (
            self._translated(),
            self._client.stream("POST", "/v1/chat/completions", json=body) as reply,
        ):
            if reply.status_code != 200:
                reply.read()
                raise ChatError(_reason(reply))
            for piece in _pieces(reply.iter_lines()):
                answer += piece
                yield piece
        self._messages = [*messages, {"role": "assistant", "content": answer}]

    def _first_model(self) -> str:
        with self._translated():
            reply = self._client.get("/v1/models")
        if reply.status_code != 200:
            raise ChatError(_reason(reply))
        models = reply.json()["data"]
        if not models:
            raise ChatError("no model is deployed yet: 'deepflow status' shows how far it is")
        return str(models[0]["id"])

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ChatError(
                    f"the certificate of {self._client.base_url} is not trusted ({error}); name"
                    " the file of its CA with SSL_CERT_FILE"
                ) from error
            raise ChatError(
                f"nobody listens at {self._client.base_url}: run 'deepflow up', or name a gateway"
                " with --url"
            ) from error
        except httpx.HTTPError as error:
            raise ChatError(f"the gateway's answer broke off: {error}") from error


def _trust(certificate: Path | None) -> ssl.SSLContext | bool:
    if certificate is None:
        return True
    try:
        return trust_exactly(certificate)
    except BadCertificate as error:
        raise ChatError(str(error)) from error


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """The text of every event; raises ChatError for the event that carries an error."""
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if not data or data == "[DONE]":
            continue
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise ChatError(event["error"]["message"])
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                yield text


def _reason(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered with {reply.status_code}"
