"""Which inference numbers of a session are open, and which are over.

Each is good once. They are handed out in rising order, so what is over is kept as ranges, of which
there are hardly more than there are inferences open: not one entry for each number, of which a
session of thousands of requests uses millions.
"""

from bisect import bisect_left, bisect_right

from protocols.errors import LocalProtocolError


class Numbers:
    """See the module's text."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self._starts: list[int] = []  # of the ranges that are over, rising and apart
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
        """All from `start` up to `stop` are over, whether they were open or not."""
        if start >= stop:
            return
        self.open = {number for number in self.open if not start <= number < stop}
        first = bisect_left(self._stops, start)  # of those that touch the new range
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    @property
    def ranges(self) -> int:
        """How many ranges hold what is over."""
        return len(self._starts)
