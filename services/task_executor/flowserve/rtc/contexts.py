"""Explicit contexts: tokens whose KV is kept under a name that its owner chose.

A name belongs to a tenant's salt, so that tenants neither see nor hit one another's. What a context
promises is the tokens; their KV is kept like any other, except that of a pinned one, which never
leaves the device before the context does.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.task_executor.flowserve.rtc.block_chain import BlockChain

CONTEXTS_MAX = 1024
TOKENS_MAX = 1 << 22  # of all contexts together
ID_LENGTH_MAX = 128


class ContextsFull(Exception):
    """There is no room for one more; the words say of what."""


@dataclass(slots=True)
class Context:
    context_id: str
    cache_salt: bytes
    token_ids: "array[int]"
    chain: BlockChain  # of its full blocks
    expires: float  # on the clock of whoever asks
    pinned: list[int] = field(default_factory=list)  # blocks of the device that it holds
    is_pinned: bool = False


class Contexts:
    def __init__(self) -> None:
        self._by_key: dict[tuple[bytes, str], Context] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Context]:
        return iter(self._by_key.values())

    def require_room(self, context: Context) -> None:
        """Raises ContextsFull where it would be one too many."""
        others = [it for it in self if _key(it) != _key(context)]
        if len(others) >= CONTEXTS_MAX:
            raise ContextsFull(f"{CONTEXTS_MAX} contexts are kept already")
        tokens = sum(len(it.token_ids) for it in others)
        if tokens + len(context.token_ids) > TOKENS_MAX:
            raise ContextsFull(
                f"contexts may have {TOKENS_MAX} tokens in all, and {tokens} are kept already"
            )

    def put(self, context: Context) -> Context | None:
        """Answers the one of the same name, which is over."""
        old = self._by_key.pop(_key(context), None)
        self._by_key[_key(context)] = context
        return old

    def get(self, cache_salt: bytes, context_id: str, now: float) -> Context | None:
        context = self._by_key.get((cache_salt, context_id))
        return context if context is not None and now < context.expires else None

    def remove(self, cache_salt: bytes, context_id: str) -> Context | None:
        return self._by_key.pop((cache_salt, context_id), None)

    def take_expired(self, now: float) -> list[Context]:
        expired = [it for it in self if it.expires <= now]
        for context in expired:
            del self._by_key[_key(context)]
        return expired

    def of_tenant(self, cache_salt: bytes, now: float) -> list[Context]:
        return [it for it in self if it.cache_salt == cache_salt and now < it.expires]


def _key(context: Context) -> tuple[bytes, str]:
    return context.cache_salt, context.context_id
