"""What is compared: a configuration in, paired runs and their records out.

In: an `ExperimentConfig`. Out: folders of runs.
May import: `training`, `evaluation`, `records`, `corpora`, `models`, `planners`, `losses`, `batches`, `rows`,
`config`, `files`.
"""
