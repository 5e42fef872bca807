"""Where embeddings come from: encoded by the model as it is, harvested from training, or kept from before it.

May import: `rows`, `ranks`, `files`.
"""
