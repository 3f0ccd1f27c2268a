"""All limits of one tenant, as one gateway sees them. Pure: time is passed in."""

import math
from dataclasses import dataclass

from deepflow.errors import RateLimited
from deepflow.v1 import access_pb2, store_pb2
from services.gateway.limits.allowance import Allowance
from services.gateway.limits.slots import Slots
from services.gateway.limits.verdict import Verdict, strictest

BUSY_RETRY_SECONDS = 1.0

Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Demand:
    """What requests wait for until the next answer of the store."""

    requests: int = 0
    tokens: int = 0

    def add(self, tokens: int) -> None:
        self.requests += 1
        self.tokens += tokens

    def remove(self, tokens: int) -> None:
        self.requests -= 1
        self.tokens -= tokens


@dataclass(frozen=True, slots=True)
class Spending:
    """What one request was charged when it was let in."""

    account: "Account"
    allowance: Allowance | None
    has_slot: bool
    tokens: int
    epoch: int


class Account:
    def __init__(self, tenant: access_pb2.Tenant) -> None:
        self.name = tenant.name
        self.demand = Demand()
        self.requests = _allowance("requests", tenant.name, tenant.requests_per_minute)
        self.tokens = _allowance("tokens", tenant.name, tenant.tokens_per_minute)
        self.slots: Slots | None = None
        self.adjust(tenant)

    def adjust(self, tenant: access_pb2.Tenant) -> None:
        """Other limits than before; what is spent and under way stays counted where it can."""
        self.requests = _adjusted(
            self.requests, "requests", tenant.name, tenant.requests_per_minute
        )
        self.tokens = _adjusted(self.tokens, "tokens", tenant.name, tenant.tokens_per_minute)
        limit = tenant.concurrent_requests
        if self.slots is None:
            self.slots = Slots(tenant.name, limit) if limit else None
        elif limit != self.slots.limit:
            in_use = self.slots.in_use
            self.slots = Slots(tenant.name, limit or 2**31)
            self.slots.in_use = in_use

    @property
    def allowances(self) -> list[Allowance]:
        return [allowance for allowance in (self.requests, self.tokens) if allowance is not None]

    def verdict(self, tokens: int, now: float, gateways: int | None) -> Verdict:
        """`gateways` share the limits among them while the store is away; else None."""
        verdicts = []
        if self.requests is not None:
            verdicts.append(self.requests.verdict(1, now, _share(self.requests.limit, gateways)))
        if self.tokens is not None:
            verdicts.append(self.tokens.verdict(tokens, now, _share(self.tokens.limit, gateways)))
        if self.slots is not None:
            verdicts.append(self.slots.verdict(now, _share(self.slots.limit, gateways)))
        return strictest(*verdicts)

    def spend(self, tokens: int, now: float) -> "Spending":
        if self.requests is not None:
            self.requests.spend(1, now)
        if self.slots is not None:
            self.slots.take()
        epoch = 0 if self.tokens is None else self.tokens.spend(tokens, now)
        return Spending(self, self.tokens, self.slots is not None, tokens, epoch)

    def settle(self, spending: "Spending", tokens: int, now: float) -> None:
        """The request is over: what it cost is known, and its place is free."""
        if self.slots is not None and spending.has_slot:
            self.slots.release()
        # A limit that was changed meanwhile begins from nothing.
        if self.tokens is None or self.tokens is not spending.allowance:
            return
        if tokens > spending.tokens:
            self.tokens.spend(tokens - spending.tokens, now)
        else:
            self.tokens.give_back(spending.tokens - tokens, spending.epoch, now)

    def asks(self) -> tuple[list[store_pb2.Take], list[store_pb2.HoldSlots]]:
        takes = []
        if self.requests is not None:
            takes.append(self.requests.ask(self.demand.requests))
        if self.tokens is not None:
            takes.append(self.tokens.ask(self.demand.tokens))
        slots = [] if self.slots is None else [self.slots.ask(self.demand.requests)]
        return takes, slots

    @property
    def has_news(self) -> bool:
        """Worth a message to the store now."""
        return (
            self.demand.requests > 0
            or any(a.has_news or a.is_low for a in self.allowances)
            or (self.slots is not None and self.slots.has_news)
        )

    def refusal(self, tokens: int, now: float, gateways: int | None) -> RateLimited:
        """Which limit it was, and when to come back."""
        for word, allowance, amount in (
            ("requests", self.requests, 1),
            ("tokens", self.tokens, tokens),
        ):
            if allowance is None:
                continue
            share = _share(allowance.limit, gateways)
            if allowance.verdict(amount, now, share) is Verdict.REFUSE:
                return RateLimited(
                    f"the limit of {allowance.limit} {word} per minute is reached:"
                    f" {amount} asked for, {allowance.left(now, share)} left",
                    retry_after_seconds=max(1.0, allowance.resets_in(now)),
                )
        limit = self.slots.limit if self.slots is not None else 0
        return RateLimited(
            f"the limit of {limit} requests at one time is reached; wait for one to end",
            reason="concurrent_requests_exceeded",
            retry_after_seconds=BUSY_RETRY_SECONDS,
        )

    def headers(self, now: float, gateways: int | None) -> list[Header]:
        """The usual names; `reset` is the time until the minute is over."""
        found: list[Header] = []
        for word, allowance in ((b"requests", self.requests), (b"tokens", self.tokens)):
            if allowance is None:
                continue
            left = allowance.left(now, _share(allowance.limit, gateways))
            seconds = math.ceil(allowance.resets_in(now))
            found += [
                (b"x-ratelimit-limit-" + word, b"%d" % allowance.limit),
                (b"x-ratelimit-remaining-" + word, b"%d" % left),
                (b"x-ratelimit-reset-" + word, b"%ds" % seconds),
            ]
        return found


def _allowance(word: str, tenant: str, limit: int) -> Allowance | None:
    return Allowance(f"{word}/{tenant}", limit) if limit else None


def _adjusted(old: Allowance | None, word: str, tenant: str, limit: int) -> Allowance | None:
    return old if old is not None and old.limit == limit else _allowance(word, tenant, limit)


def _share(limit: int, gateways: int | None) -> int | None:
    return None if gateways is None else max(1, limit // gateways)
