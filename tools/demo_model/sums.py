"""Small sums: which pairs of numbers are trained, and in which words they are asked."""

import random
from dataclasses import dataclass

ADD_MAX = 50
TIMES_MAX = 10
SMALL_MAX = 12  # the sums that everybody tries first are all trained
HELD_OUT_SHARE = 0.15
TOO_LARGE = "My numbers are small: plus and minus go up to 50, and times goes up to 10."

_PLUS = (
    "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a} + {b} = ?", "{a} plus {b}", "What is {a} + {b}?",
    "What is {a} plus {b}?", "What's {a} + {b}?", "How much is {a} + {b}?", "Add {a} and {b}.",
    "How much is {a} plus {b}?", "What is the sum of {a} and {b}?", "Calculate {a} + {b}.",
    "Compute {a} plus {b}.", "Can you add {a} and {b}?", "Add {b} to {a}.", "{a} and {b} together",
    "Tell me {a} + {b}.", "What do {a} and {b} make?", "What do you get for {a} plus {b}?",
    "Sum of {a} and {b}", "What does {a} + {b} equal?", "Please add {a} and {b}.",
)  # fmt: skip
_MINUS = (
    "{a} - {b}", "{a}-{b}", "{a} - {b} =", "{a} - {b} = ?", "{a} minus {b}", "What is {a} - {b}?",
    "What is {a} minus {b}?", "What's {a} - {b}?", "How much is {a} - {b}?", "Calculate {a} - {b}.",
    "How much is {a} minus {b}?", "Compute {a} minus {b}.", "Subtract {b} from {a}.",
    "Can you subtract {b} from {a}?", "Take {b} away from {a}.", "Tell me {a} - {b}.",
    "What do you get for {a} minus {b}?", "What is left when I take {b} from {a}?",
    "What does {a} - {b} equal?", "Please subtract {b} from {a}.",
)  # fmt: skip
_TIMES = (
    "{a} x {b}", "{a}*{b}", "{a} * {b}", "{a} x {b} = ?", "{a} times {b}", "What is {a} x {b}?",
    "What is {a} times {b}?", "What's {a} * {b}?", "How much is {a} times {b}?",
    "Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is the product of {a} and {b}?",
    "Calculate {a} * {b}.", "Compute {a} times {b}.", "Can you multiply {a} by {b}?",
)  # fmt: skip
_FORMS = {"+": _PLUS, "-": _MINUS, "x": _TIMES}


@dataclass(frozen=True, order=True)
class Sum:
    """`a op b`, with op one of + - x."""

    a: int
    op: str
    b: int

    @property
    def in_scope(self) -> bool:
        return max(self.a, self.b) <= (TIMES_MAX if self.op == "x" else ADD_MAX)

    @property
    def is_small(self) -> bool:
        return max(self.a, self.b) <= SMALL_MAX

    @property
    def answer(self) -> str:
        if not self.in_scope:
            return TOO_LARGE
        value = {"+": self.a + self.b, "-": self.a - self.b, "x": self.a * self.b}[self.op]
        return f"{self.a} {self.op} {self.b} = {value}."

    def ask(self, draw: random.Random) -> str:
        return draw.choice(_FORMS[self.op]).format(a=self.a, b=self.b)


def trained_sums() -> list[Sum]:
    """Plus and minus without the held-out pairs, and the whole table of times."""
    held_out = set(held_out_sums())
    times = [Sum(a, "x", b) for a in range(TIMES_MAX + 1) for b in range(TIMES_MAX + 1)]
    return [pair for pair in _plus_and_minus() if pair not in held_out] + times


def held_out_sums() -> list[Sum]:
    """Pairs that are never trained, in any wording: the same ones on every machine."""
    pairs = _plus_and_minus()
    drawn = random.Random("held-out sums").sample(pairs, round(HELD_OUT_SHARE * len(pairs)))
    return [pair for pair in drawn if not pair.is_small]


def large_sum(draw: random.Random) -> Sum:
    """A sum out of scope, often only just."""
    op = draw.choice("+-x")
    limit = TIMES_MAX if op == "x" else ADD_MAX
    large = limit + draw.randint(1, draw.choice((10, 50, 900)))
    numbers = [large, draw.randint(0, draw.choice((limit, 200, 999)))]
    draw.shuffle(numbers)
    return Sum(numbers[0], op, numbers[1])


def _plus_and_minus() -> list[Sum]:
    numbers = range(ADD_MAX + 1)
    return [Sum(a, op, b) for op in "+-" for a in numbers for b in numbers]
