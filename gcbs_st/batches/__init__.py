"""An order of the rows in, batches out: which rows must not meet, and what becomes of an order where they do.

May import `files` and nothing else of ours.
"""
