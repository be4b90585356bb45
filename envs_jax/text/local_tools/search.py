"""BM25, the ranking of short documents by the words of a query (Robertson and Zaragoza 2009)."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence

SATURATION, LENGTH_SHARE = 1.2, 0.75  # k1 and b


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


class BM25:
    """An index of texts."""

    def __init__(self, texts: Sequence[str]):
        counts = [collections.Counter(words(text)) for text in texts]
        lengths = [count.total() for count in counts]
        mean = sum(lengths) / len(lengths)
        found_in = collections.Counter(word for count in counts for word in count)
        # Word -> the texts it is in, each with what it adds to that text's score.
        self._scores: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)
        for i, count in enumerate(counts):
            norm = SATURATION * (1.0 - LENGTH_SHARE + LENGTH_SHARE * lengths[i] / mean)
            for word, number in count.items():
                rarity = math.log(1.0 + (len(texts) - found_in[word] + 0.5) / (found_in[word] + 0.5))
                score = rarity * number * (SATURATION + 1.0) / (number + norm)
                self._scores[word].append((i, score))

    def top(self, query: str, number: int) -> list[int]:
        """At most `number` texts that share a word with the query, the best first, equal ones in their order."""
        scores: dict[int, float] = collections.defaultdict(float)
        for word in set(words(query)):
            for i, score in self._scores.get(word, ()):
                scores[i] += score
        return sorted(scores, key=lambda i: (-scores[i], i))[:number]
