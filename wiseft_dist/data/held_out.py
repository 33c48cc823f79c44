"""Which training samples are kept for ID validation: arithmetic on positions, so that nothing has to be read or stored.

The samples of a shard are chosen by its ordinal in the manifest and their positions in it. Nothing needs the keys, and
the same shards at another place have the same held-out samples; a shard put in front of them changes the choice.
Of n samples at fraction f, ``floor(n f + u)`` are held out, u in [0, 1) a hash of the ordinal: on average exactly f.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def held_out_counts(num_samples: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """How many samples of each shard are held out, int64 ``[shards]``, for the shards' sizes in their order."""
    hashes = splitmix64(np.arange(len(num_samples), dtype=np.uint64))
    uniform = (hashes >> np.uint64(11)).astype(np.float64) / 2**53
    return np.floor(num_samples * fraction + uniform).astype(np.int64)


def held_out_positions(shard: int, num_samples: int, count: int) -> NDArray[np.int64]:
    """The ``count`` positions of a shard with the smallest hashes, rising, int64 ``[count]``.

    A larger count holds out the same and more.
    """
    if count == 0:
        return np.empty(0, dtype=np.int64)
    seed = splitmix64(np.array([shard], dtype=np.uint64))
    positions: NDArray[np.uint64] = np.arange(num_samples, dtype=np.uint64)
    hashes = splitmix64(seed + positions)  # distinct: splitmix64 is a bijection
    return np.sort(np.argpartition(hashes, count - 1)[:count]).astype(np.int64)


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea and Flood's 64-bit mixer (OOPSLA 2014) of every value, as SplittableRandom's output for that seed."""
    mixed = values + _GOLDEN
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _FACTORS[0]
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _FACTORS[1]
    return mixed ^ (mixed >> _SHIFTS[2])
