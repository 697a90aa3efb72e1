"""Permutations of any size that are computed where they are asked for, not held."""

from collections.abc import Sequence

import numpy as np

ROUNDS = 8


class KeyedPermutation:
    """One permutation of 0 ... num - 1, drawn by a key.

    A Feistel network permutes the numbers of an even count of bits, whatever its round function is;
    results beyond `num` are put through it again until they are not, which leaves a permutation of
    the others ("cycle walking"; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """

    def __init__(self, num: int, key: Sequence[int]):
        self.num = num
        self._half = np.uint64(max(1, -(-max(num - 1, 1).bit_length() // 2)))
        self._keys = np.random.SeedSequence(list(key)).generate_state(ROUNDS, np.uint64)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """What stands at some places, int64 [n]."""
        numbers = self._once(places.astype(np.uint64))
        while (beyond := numbers >= self.num).any():
            numbers[beyond] = self._once(numbers[beyond])
        return numbers.astype(np.int64)

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        low = np.uint64((1 << int(self._half)) - 1)
        left, right = numbers >> self._half, numbers & low
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & low)
        return left << self._half | right


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Each number's bits, thoroughly mixed, uint64 [n]: the finalizer of splitmix64 (Steele et al., 2014)."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)
