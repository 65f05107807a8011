"""In which order an epoch takes its samples. No I/O.

The order is a permutation that can be computed at any place of it, so that neither an epoch over a billion samples
needs memory for one, nor a loop that goes on from its middle has to repeat what was before. It is a generalized
Feistel network, and walks along a cycle to stay in range: J. Black and P. Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002, sections 4 and 5. It depends on nothing but the seed, the epoch and the number of samples, and
is part of what is promised: a newer version of this package, or of numpy, goes through the samples in the same order.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Shuffle"]

#: Of the network. Six are enough against whoever tells it from chance by all pairs; small ranges need more to mix.
ROUNDS = 16

_Words = np.ndarray[Any, np.dtype[np.uint64]]


class Shuffle:
    """A permutation of ``range(length)`` that is one of all of them by chance.

    Parameters
    ----------
    length
        Up to 2**62.
    seed, epoch
        Which one it is.

    Examples
    --------
    >>> Shuffle(8, seed=0, epoch=0)[0:8].tolist()
    [3, 7, 1, 4, 5, 6, 2, 0]
    """

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        self._length = length
        # Two numbers, one below each of these, make a position: hardly more pairs than positions.
        self._wide = max(math.isqrt(max(length - 1, 0)) + 1, 1)
        self._narrow = max(-(-length // self._wide), 1)
        key = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=64).digest()
        words = [
            hashlib.blake2b(bytes([number]), key=key, digest_size=8).digest() for number in range(ROUNDS)
        ]
        self._keys = np.frombuffer(b"".join(words), "<u8").astype(np.uint64)

    def __getitem__(self, places: slice) -> npt.NDArray[np.int64]:
        """The samples at consecutive places of the order."""
        first, after, _ = places.indices(self._length)
        values = np.arange(first, max(first, after), dtype=np.uint64)
        outside = np.ones(values.shape, np.bool_)
        # Those that leave the range go on until they are in it again: each ends at a sample of its own.
        while outside.any():
            values[outside] = self._permute(values[outside])
            outside = values >= self._length
        return values.astype(np.int64)

    def _permute(self, values: _Words) -> _Words:
        left, right = values % self._wide, values // self._wide
        sides = np.array([self._wide, self._narrow], np.uint64)
        for number, key in enumerate(self._keys):
            left, right = right, (left + _mix(right ^ key) % sides[number % 2]) % sides[number % 2]
        # An even number of rounds: left is below the wide side again.
        return left + right * np.uint64(self._wide)


def _mix(words: _Words) -> _Words:
    """Each word as another one by which nothing can be told of it.

    The finalizer of SplitMix64: G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014, with the constants of D. Stafford's variant 13.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
