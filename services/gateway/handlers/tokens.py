"""POST /tokenize and /detokenize: what a model's tokenizer makes of a text, and the way back."""

import contextlib
from collections.abc import Callable, Iterator

from deepflow.errors import Unavailable
from services.gateway.catalog import RETRY_AFTER_SECONDS, Catalog
from services.gateway.config import GatewayConfig
from services.gateway.http.exchange import Exchange
from services.gateway.links.links import Links
from services.gateway.schema.body import parse_object
from services.gateway.schema.tokens import check_ids, read_detokenize, read_tokenize


class Tokens:
    def __init__(self, config: GatewayConfig, links: Links, catalog: Callable[[], Catalog]) -> None:
        self._config = config
        self._limits = config.limits
        self._links = links
        self._catalog = catalog
        self._running = 0

    async def tokenize(self, exchange: Exchange) -> None:
        with self._place():
            body = await exchange.read_json_bytes(self._config.body_bytes_max)
            call = read_tokenize(parse_object(body, self._config.json_depth_max), self._limits)
            exchange.caller.require_model(call.request.model)
            self._catalog().deployment(call.request.model)
            link = await self._links.least_loaded()
            answer = await link.tokenize(call.request, self._config.tokenize_seconds_max)
        await exchange.respond_json(
            {
                "count": len(answer.token_ids),
                "max_model_len": answer.max_tokens,
                "tokens": list(answer.token_ids),
                "token_strs": list(answer.tokens) if call.return_token_strs else None,
            }
        )

    async def detokenize(self, exchange: Exchange) -> None:
        with self._place():
            body = await exchange.read_json_bytes(self._config.body_bytes_max)
            request = read_detokenize(parse_object(body, self._config.json_depth_max), self._limits)
            exchange.caller.require_model(request.model)
            deployment = self._catalog().deployment(request.model)
            if vocab_size := deployment.facts.vocab_size:
                check_ids(request, vocab_size)
            link = await self._links.least_loaded()
            answer = await link.detokenize(request, self._config.tokenize_seconds_max)
        await exchange.respond_json({"prompt": answer.text})

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """One of the few places that there are, so that these never crowd out the answers."""
        if self._running >= self._config.tokenizations_max:
            raise Unavailable(
                "too many texts are being tokenized; try again in a moment",
                reason="overloaded",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
