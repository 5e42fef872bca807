"""What the batches of an epoch are: an order, rows that must not meet kept apart, and the order on disk.

In: an order of the rows. Out: lists of row ids.
May import: `files`.
"""
