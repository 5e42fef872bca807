"""From an order of rows to batches: rows that must not meet kept apart, and the order on disk. May import: `files`."""
