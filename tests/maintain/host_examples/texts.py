"""Made-up sentences about facts: those about one fact share most words, those of one topic some, others next to none.

A random model embeds a text much like the average of its words, so texts of a topic lie near one another, and batches
composed from embeddings can be told from random ones.
"""

from __future__ import annotations

import numpy as np

TOPICS = 20
WORDS_A_TOPIC = 24
WORDS_A_FACT = 4
COMMON = "the a of in is how what does with for and to on by".split()
_STARTS = ["b", "br", "d", "f", "g", "gl", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v", "z"]


def _make_words() -> list[list[str]]:
    rng = np.random.default_rng(1)
    words: dict[str, None] = {}
    while len(words) < TOPICS * WORDS_A_TOPIC:
        syllables = [rng.choice(_STARTS) + rng.choice(list("aeiou")) for _ in range(int(rng.integers(2, 4)))]
        words["".join(syllables)] = None
    made = list(words)
    return [made[topic * WORDS_A_TOPIC : (topic + 1) * WORDS_A_TOPIC] for topic in range(TOPICS)]


TOPIC_WORDS = _make_words()
WORDS = [*COMMON, *(word for words in TOPIC_WORDS for word in words)]


class Writer:
    """Writes sentences about facts, which are numbers; the same sentences for the same seed.

    Args:
        seed: of the choices that differ between two sentences about one fact.
        foreign: a letter put before each word, as another language would have other words; "" for none.
    """

    def __init__(self, seed: int, foreign: str = "") -> None:
        self.rng = np.random.default_rng(seed)
        self.foreign = foreign

    def about(self, fact: int, sentences: int = 1) -> str:
        """Returns a text about a fact, of so many sentences."""
        return ". ".join(self._sentence(fact) for _ in range(sentences))

    def near(self, fact: int) -> str:
        """Returns a sentence about another fact of the same topic."""
        return self._sentence(fact + TOPICS * int(self.rng.integers(1, 400)))

    def _sentence(self, fact: int) -> str:
        topic = TOPIC_WORDS[fact % TOPICS]
        own = np.random.default_rng(fact).choice(topic, size=WORDS_A_FACT, replace=False)
        words = [*own, *self.rng.choice(topic, size=2), *self.rng.choice(COMMON, size=2)]
        return " ".join(self.foreign + str(word) for word in self.rng.permutation(words))
