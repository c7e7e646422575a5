"""The inference numbers of a session: which are open, and which are over.

Each number can be used once. They are handed out in rising order, so the numbers that are over are
kept as ranges, of which there are hardly more than open inferences. One entry per number would not
do: a session of thousands of requests uses millions.
"""

from bisect import bisect_left, bisect_right

from protocols.errors import LocalProtocolError


class Numbers:
    """See the module docstring."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self._starts: list[int] = []  # of the ranges that are over, rising and disjoint
        self._stops: list[int] = []

    def begin(self, number: int) -> None:
        """Open a number.

        Raises:
            LocalProtocolError: it was used before: masks would repeat.
        """
        if number < 0 or number in self.open or self.over(number):
            raise LocalProtocolError(
                f"inference number {number} is used or negative: take a new one"
            )
        self.open.add(number)

    def over(self, number: int) -> bool:
        """Whether a number has ended."""
        at = bisect_right(self._starts, number)
        return at > 0 and number < self._stops[at - 1]

    def end(self, start: int, stop: int) -> None:
        """Mark all numbers from `start` up to `stop` as over, whether they were open or not."""
        if start >= stop:
            return
        self.open = {number for number in self.open if not start <= number < stop}
        first = bisect_left(self._stops, start)  # the first range that touches the new one
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    @property
    def ranges(self) -> int:
        """Number of ranges of numbers that are over."""
        return len(self._starts)
