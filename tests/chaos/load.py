"""Clients that go on asking while a test does something to the stack, and what became of it."""

import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Self

import httpx

BODY = {"prompt": "Once", "ignore_eos": True, "stream": True, "temperature": 0}
TRIES_MAX = 200
TRY_AGAIN_SECONDS = 0.05
PATIENCE_SECONDS = 120.0


class Load:
    """`clients` threads, each one stream after another, with a connection of its own for each.

    A refused connection goes to the next gateway, as a load balancer's would; nothing else is
    tried again: whatever else goes wrong is in `failures`. Prompts come round and round.
    """

    def __init__(
        self,
        urls: list[str],
        *,
        clients: int,
        max_tokens: int,
        model: str = "demo",
        prompts: Sequence[str] = ("Once",),
        key: str = "",
    ) -> None:
        self._urls = itertools.cycle(urls)
        self._prompts = itertools.cycle(prompts)
        self._body = BODY | {"model": model, "max_tokens": max_tokens}
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._max_tokens = max_tokens
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(clients)]
        self.flowing = threading.Semaphore(0)
        self.failures: list[str] = []
        self.texts: set[str] = set()
        self.texts_by_prompt: defaultdict[str, set[str]] = defaultdict(set)
        self.answers = 0
        self.longest_silence_seconds = 0.0  # between two events of one stream

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        try:
            self._wait_until_all_flow()
        except BaseException:
            self._over.set()  # nobody goes on asking in the tests that follow
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "a client hangs"

    def _wait_until_all_flow(self) -> None:
        for _ in self._threads:
            is_flowing = self.flowing.acquire(timeout=PATIENCE_SECONDS)
            assert is_flowing, f"no token came: {self.failures}"

    def _ask_on(self) -> None:
        is_first = True
        while not self._over.is_set():
            try:
                prompt = next(self._prompts)
                text = self._stream(prompt, is_first)
                self.texts.add(text)
                self.texts_by_prompt[prompt].add(text)
                self.answers += 1
            except (httpx.HTTPError, AssertionError) as error:
                self.failures.append(repr(error))
                if is_first:
                    return
            is_first = False

    def _stream(self, prompt: str, is_first: bool) -> str:
        for _ in range(TRIES_MAX):
            try:
                return self._read(f"{next(self._urls)}/v1/completions", prompt, is_first)
            except httpx.ConnectError:
                self._over.wait(TRY_AGAIN_SECONDS)
        raise AssertionError("every gateway refuses")

    def _read(self, url: str, prompt: str, is_first: bool) -> str:
        events: list[dict[str, Any]] = []
        body, heard_at = self._body | {"prompt": prompt}, time.monotonic()
        # Nothing here speaks TLS; to read the certificates takes longer than a short answer.
        asked = httpx.stream(
            "POST", url, json=body, headers=self._headers, timeout=PATIENCE_SECONDS, verify=False
        )
        with asked as reply:
            if reply.status_code != 200:
                raise AssertionError(f"{reply.status_code}: {reply.read().decode()}")
            is_done = False
            for line in reply.iter_lines():
                is_done = is_done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    heard_at = self._note_event(heard_at)
                    events.append(json.loads(line.removeprefix("data: ")))
                if is_first and len(events) == 1:
                    self.flowing.release()
                    is_first = False
        errors = [event["error"] for event in events if "error" in event]
        assert is_done and not errors, errors or "the stream broke off"
        return "".join(choice["text"] for e in events for choice in e.get("choices", []))

    def _note_event(self, heard_at: float) -> float:
        now = time.monotonic()
        self.longest_silence_seconds = max(self.longest_silence_seconds, now - heard_at)
        return now
