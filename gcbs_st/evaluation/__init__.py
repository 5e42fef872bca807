"""How good a model is: STS, code search, held-out pairs, and the same tasks through mteb.

In: a model. Out: scores by name.
May import: `embeddings`.
"""
