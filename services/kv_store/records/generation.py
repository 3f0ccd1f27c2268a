"""The marker of one life of the record space, which tells "empty" from "lost"."""

from deepflow.errors import Unavailable
from deepflow.ids import new_id
from services.kv_store.records import keys, scripts
from services.kv_store.records.answers import NO_GENERATION, checked, text
from services.kv_store.redis_link import RedisLink, unavailable


class Generation:
    """Made once, where the record space is provably new, and looked for ever after."""

    def __init__(self, redis: RedisLink, *, may_initialise: bool) -> None:
        self._redis = redis
        self._may_initialise = may_initialise
        self._why_missing = NO_GENERATION

    async def check(self) -> str:
        """The marker; raises Unavailable where Redis or the marker is away."""
        if self._may_initialise:
            return await self._find_or_make()
        found = await self._redis.get(keys.GENERATION)
        if found is None:
            raise unavailable(self._why_missing)
        return text(found)

    async def _find_or_make(self) -> str:
        reply = await self._redis.run(
            scripts.GENERATION, [keys.GENERATION], [new_id("generation"), 1, f"{keys.SPACE}*"]
        )
        # From its first answer on this Redis is not new: a marker that vanishes later was lost.
        self._may_initialise = False
        try:
            return text(checked(reply)[0])
        except Unavailable as error:
            self._why_missing = error.message
            raise
