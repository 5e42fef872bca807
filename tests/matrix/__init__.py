"""The feature matrix: what sentence-transformers can train, trained with planned batches; see `cases.py`."""
