"""The commands, one per module, each a function `(argv, *, program) -> int`.

In: a command line. Out: an exit code, see `shell`.
May import: `reports`, `experiments`, `records`, `evaluation`, `corpora`, `models`, `planners`, `batches`, `config`,
`files`.
"""
