"""Factors that other machines of the same party hold and multiply by.

A party is one domain, which may have many machines. Which of them holds which rows is up to the
runtime: a product of words modulo 2^64 is the same however it is divided, to the bit.
"""

from abc import ABC, abstractmethod

from protocols.base.ring import Words


class Elsewhere(ABC):
    """A party's factor of a (rows, columns) matrix.

    Methods wait for the other machines, and so are awaited where the runtime waits for messages.
    """

    @abstractmethod
    async def matmul(self, x: Words) -> Words:
        """x @ W modulo 2^64 for x (T, rows): (T, columns)."""

    @abstractmethod
    async def matmul_rows(self, x: Words) -> Words:
        """x @ W^T modulo 2^64 for x (T, columns): (T, rows)."""
