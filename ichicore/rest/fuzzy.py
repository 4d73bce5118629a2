"""Approximate lookup of a name among others, for the hints of errors.

Candidates share three-letter (else two-letter) grams with the name looked for; the fifty closest
by cosine of their gram counts are ranked by normalised edit distance.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

GRAM_SIZES = (3, 2)
RANKED = 50
DEFAULT_SCORE = 0.33


def _grams(text: str, size: int) -> Counter[str]:
    """Counts of the substrings of `size` letters; ends are marked, punctuation is dropped."""
    kept = "".join(c for c in text if c.isalnum() or c.isspace() or c == ",")
    framed = f"-{kept}-"
    return Counter(framed[i : i + size] for i in range(len(framed) - size + 1))


def _norm(grams: Counter[str]) -> float:
    return math.sqrt(sum(count * count for count in grams.values()))


def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance, a column of the matrix at a time as the bits of two integers."""
    if not left:
        return len(right)
    places: dict[str, int] = defaultdict(int)
    for index, char in enumerate(left):
        places[char] |= 1 << index
    mask = (1 << len(left)) - 1
    last = 1 << (len(left) - 1)
    up, down = mask, 0  # where the next cell of the column is one more, one less
    distance = len(left)
    for char in right:
        equal = places.get(char, 0)
        vertical = equal | down
        equal |= (((equal & up) + up) ^ up) & mask
        grows = down | (~(equal | up) & mask)
        shrinks = up & equal
        if grows & last:
            distance += 1
        if shrinks & last:
            distance -= 1
        grows = ((grows << 1) | 1) & mask
        shrinks = (shrinks << 1) & mask
        up = shrinks | (~(vertical | grows) & mask)
        down = grows & vertical
    return distance


class FuzzySet:
    """A set of names, asked for the one most like a text; case does not matter."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, str] = {}
        for name in names:
            self._exact.setdefault(name.lower(), name)
        self._keys = list(self._exact)
        self._norms: dict[int, list[float]] = {}
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for size in GRAM_SIZES:
            norms = self._norms[size] = []
            for index, key in enumerate(self._keys):
                grams = _grams(key, size)
                norms.append(_norm(grams))
                for gram, count in grams.items():
                    self._places[gram].append((index, count))

    def matches(self, text: str, minimum: float = DEFAULT_SCORE) -> list[tuple[float, str]]:
        """(score, name) of the names at least that similar, best first; scores are 0 to 1."""
        key = text.lower()
        exact = self._exact.get(key)
        if exact is not None:
            return [(1.0, exact)]
        for size in GRAM_SIZES:
            found = self._ranked(key, size, minimum)
            if found:
                return found
        return []

    def best(self, text: str, minimum: float = DEFAULT_SCORE) -> str | None:
        """The most similar name, None when none is similar enough."""
        found = self.matches(text, minimum)
        return found[0][1] if found else None

    def _ranked(self, key: str, size: int, minimum: float) -> list[tuple[float, str]]:
        wanted = _grams(key, size)
        shared: dict[int, int] = defaultdict(int)
        for gram, count in wanted.items():
            for index, other in self._places.get(gram, ()):
                shared[index] += count * other
        norms = self._norms[size]
        near = sorted(shared, key=lambda index: (-shared[index] / norms[index], index))[:RANKED]
        scored = []
        for index in near:
            name = self._keys[index]
            shorter, longer = sorted((len(key), len(name)))
            if shorter < minimum * longer:
                continue  # each letter too many costs one edit
            score = 1 - edit_distance(name, key) / longer
            if score >= minimum:
                scored.append((score, self._exact[name]))
        scored.sort(key=lambda match: -match[0])
        return scored
