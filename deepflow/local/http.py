"""As much HTTP as it takes to ask the stack's own services how they are."""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deepflow.tls import BadCertificate, trust_exactly

ANSWER_SECONDS_MAX = 30.0


class NoAnswer(Exception):
    """Nobody listens there, or what came back is no HTTP."""


async def get(
    url: str,
    timeout_seconds: float = ANSWER_SECONDS_MAX,
    *,
    key: str = "",
    certificate: Path | None = None,
) -> tuple[int, Any]:
    """(status, JSON body); None for a body that is no JSON. `key` is an API key.

    `certificate` is the one that is trusted where the address is https.
    """
    return await _ask("GET", url, b"", timeout_seconds, key, certificate)


async def post(
    url: str,
    document: Any,
    timeout_seconds: float = ANSWER_SECONDS_MAX,
    *,
    key: str = "",
    certificate: Path | None = None,
) -> tuple[int, Any]:
    body = json.dumps(document).encode()
    return await _ask("POST", url, body, timeout_seconds, key, certificate)


async def _ask(
    method: str,
    url: str,
    body: bytes,
    timeout_seconds: float,
    key: str,
    certificate: Path | None,
) -> tuple[int, Any]:
    parts = urlsplit(url)
    credentials = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"{method} {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"{credentials}\r\n"
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            # Read each time: it is renewed while the stack runs.
            trusted = trust_exactly(certificate) if certificate is not None else None
            reader, writer = await asyncio.open_connection(
                parts.hostname, parts.port, ssl=trusted if parts.scheme == "https" else None
            )
            try:
                writer.write(head.encode() + body)
                return _parse(await reader.read())
            finally:
                writer.close()
    except (OSError, TimeoutError, BadCertificate) as error:
        raise NoAnswer(f"{url}: {error or 'no answer in time'}") from error


def _parse(answer: bytes) -> tuple[int, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[1].isdigit():
        raise NoAnswer("the answer is no HTTP")
    try:
        return int(words[1]), json.loads(body)
    except ValueError:
        return int(words[1]), None
