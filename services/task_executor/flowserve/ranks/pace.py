"""How long a rank may work without a sign: learned from the plans that it has run.

A plan is as heavy as its tokens and the context that they look back at. What a heavier plan took is
enough for a lighter one, so that a few long prompts make everything known.
"""

from operator import mul

from services.task_executor.flowserve.marks import Marks
from services.task_executor.flowserve.plan import StepPlan

_FORGET = 8  # a slow step is half forgotten after five faster ones of its weight

# Accelerators compile, or capture, where they see something for the first times.
SURE_AFTER = 8

Weight = tuple[int, int]


class Pace:
    def __init__(self, marks: Marks, sure_after: int) -> None:
        """What was seen less often is not known."""
        self._marks = marks
        self._sure_after = sure_after
        self._longest: dict[Weight, int] = {}
        self._seen: dict[Weight, int] = {}
        self._weight: Weight = (0, 0)

    @classmethod
    def on(cls, device_type: str, marks: Marks) -> "Pace":
        return cls(marks, 1 if device_type == "cpu" else SURE_AFTER)

    def begin(self, plan: StepPlan) -> None:
        self._weight = weight_of(plan)
        self._marks.work(self.expected_ns(self._weight))
        self._marks.take_longest()  # whatever was before

    def end(self) -> None:
        self.observe(self._weight, self._marks.take_longest())

    def expected_ns(self, weight: Weight) -> int:
        """0 where nobody knows."""
        if self._seen.get(weight, 0) >= self._sure_after:
            return self._longest[weight]
        heavier = (
            longest
            for (tokens, context), longest in self._longest.items()
            if tokens >= weight[0]
            and context >= weight[1]
            and self._seen[tokens, context] >= self._sure_after
        )
        return min(heavier, default=0)

    def observe(self, weight: Weight, longest_ns: int) -> None:
        known = self._longest.get(weight, 0)
        self._longest[weight] = max(longest_ns, known - (known - longest_ns) // _FORGET)
        self._seen[weight] = self._seen.get(weight, 0) + 1


def weight_of(plan: StepPlan) -> Weight:
    """By powers of two."""
    looked_back = sum(map(mul, plan.counts, plan.starts))
    return plan.num_tokens.bit_length(), looked_back.bit_length()
