"""Where embeddings come from: encoded by the model as it is, or harvested from training.

In: rows and a model. Out: one (n, d) array of unit rows for each text column.
May import: `rows`, `ranks`.
"""
