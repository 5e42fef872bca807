"""Where embeddings come from: encoded by the model as it is, or harvested from training.

May import: `rows`, `ranks`.
"""
