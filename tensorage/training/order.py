"""Order in which an epoch visits its samples. No I/O.

The order is a permutation that can be computed at any of its places. An epoch over a billion samples therefore needs
no memory for the order, and a loop that resumes in the middle computes nothing of the beginning. The permutation is a
generalized Feistel network, with cycle walking to stay in range: J. Black and P. Rogaway, "Ciphers with arbitrary
finite domains", CT-RSA 2002, sections 4 and 5.

The order depends on nothing but the seed, the epoch and the number of samples. A newer version of this package, or of
numpy, visits the samples in the same order: the order is a promise.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Shuffle", "mix"]

#: Rounds of the network. Six suffice against an observer of all pairs, but small ranges need more to mix.
ROUNDS = 16

_Words = np.ndarray[Any, np.dtype[np.uint64]]


class Shuffle:
    """A random permutation of ``range(length)``.

    Parameters
    ----------
    length
        Length of the range, up to 2**62.
    seed, epoch
        Numbers that choose the permutation.
    of
        Name that chooses another permutation, where an epoch has several.

    Examples
    --------
    >>> Shuffle(8, seed=0, epoch=0)[0:8].tolist()
    [3, 7, 1, 4, 5, 6, 2, 0]
    """

    def __init__(self, length: int, seed: int, epoch: int, of: str = "") -> None:
        self._length = length
        # A place is a pair of numbers, one below each of these. There are hardly more pairs than places.
        self._wide = max(math.isqrt(max(length - 1, 0)) + 1, 1)
        self._narrow = max(-(-length // self._wide), 1)
        name = f"{seed}/{epoch}/{of}" if of else f"{seed}/{epoch}"
        key = hashlib.blake2b(name.encode(), digest_size=64).digest()
        words = [
            hashlib.blake2b(bytes([number]), key=key, digest_size=8).digest() for number in range(ROUNDS)
        ]
        self._keys = np.frombuffer(b"".join(words), "<u8").astype(np.uint64)

    def __getitem__(self, places: slice) -> npt.NDArray[np.int64]:
        """Return the samples at consecutive places of the order."""
        first, after, _ = places.indices(self._length)
        values = np.arange(first, max(first, after), dtype=np.uint64)
        outside = np.ones(values.shape, np.bool_)
        # A value outside of the range is permuted again until it is inside. Every value ends at a sample of its own,
        # since the permutation goes in cycles.
        while outside.any():
            values[outside] = self._permute(values[outside])
            outside = values >= self._length
        return values.astype(np.int64)

    def _permute(self, values: _Words) -> _Words:
        left, right = values % self._wide, values // self._wide
        sides = np.array([self._wide, self._narrow], np.uint64)
        for number, key in enumerate(self._keys):
            left, right = right, (left + mix(right ^ key) % sides[number % 2]) % sides[number % 2]
        # The number of rounds is even, so `left` is below the wide side again.
        return left + right * np.uint64(self._wide)


def mix(words: _Words) -> _Words:
    """Mix each word, so that similar words become different.

    The finalizer of SplitMix64: G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014, with the constants of D. Stafford's variant 13.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
