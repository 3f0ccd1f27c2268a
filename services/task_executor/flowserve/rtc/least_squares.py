"""A linear fit that follows what it sees: least squares over a fading past, no price below zero."""

from collections.abc import Sequence
from operator import mul

_FADING = 0.98  # of everything seen before, with each observation
_TRUSTED = 8  # observations after which one far above the fit is taken for somebody else's fault
_OUTLIER_FACTOR = 4.0
_RIDGE = 1e-9  # keeps the equations solvable while too little was seen


class LeastSquares:
    def __init__(self, width: int) -> None:
        self.count = 0
        self.products = [[0.0] * width for _ in range(width)]
        self.targets = [0.0] * width
        self._fitted: list[float] | None = None

    def observe(self, inputs: Sequence[float], output: float) -> None:
        if self.count >= _TRUSTED:
            expected = sum(map(mul, self.coefficients(), inputs))
            output = min(output, _OUTLIER_FACTOR * expected)
        self.count += 1
        self._fitted = None
        for row, value in enumerate(inputs):
            self.targets[row] = _FADING * self.targets[row] + value * output
            products = self.products[row]
            for column, other in enumerate(inputs):
                products[column] = _FADING * products[column] + value * other

    def coefficients(self) -> list[float]:
        """Those of the best fit among the ones without a negative price."""
        if self._fitted is None:
            self._fitted = self._fit()
        return self._fitted

    def _fit(self) -> list[float]:
        """Whoever comes out below zero is left out, the worst first, and the rest fitted again."""
        width = len(self.targets)
        kept = list(range(width))
        while kept:
            solved = self._solve(kept)
            worst = min(range(len(kept)), key=solved.__getitem__)
            if solved[worst] >= 0:
                prices = dict(zip(kept, solved, strict=True))
                return [prices.get(index, 0.0) for index in range(width)]
            del kept[worst]
        return [0.0] * width

    def _solve(self, kept: list[int]) -> list[float]:
        """Gauss with pivots over the kept rows and columns."""
        scale = max(self.products[index][index] for index in kept)
        rows = [
            [*(self.products[row][column] for column in kept), self.targets[row]] for row in kept
        ]
        size = len(kept)
        for index in range(size):
            rows[index][index] += _RIDGE * scale + 1e-300
        for index in range(size):
            pivot = max(range(index, size), key=lambda row: abs(rows[row][index]))
            rows[index], rows[pivot] = rows[pivot], rows[index]
            for row in range(size):
                if row != index:
                    factor = rows[row][index] / rows[index][index]
                    for column in range(index, size + 1):
                        rows[row][column] -= factor * rows[index][column]
        return [rows[index][size] / rows[index][index] for index in range(size)]
