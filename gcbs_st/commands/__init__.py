"""The commands, one per module, each a function `(argv, *, program) -> int`.

In: a command line. Out: an exit code, see `shell`. What takes long to import is imported after the arguments are read.
May import: `advice`, `reports`, `experiments`, `records`, `evaluation`, `embeddings`, `corpora`, `models`, `planners`,
`batches`, `rows`, `config`, `files`.
"""
