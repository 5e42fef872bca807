"""What users hold: the host's trainers with planned batches.

`trainer` and its siblings for sparse and multi-vector models compose the library in front of the host.
`planned_training` is what the host calls, `replan_callback` says when to plan, `replanner` does it.
May import: `rows`, `embeddings`, `planners`, `batches`, `losses`, `files`, `ranks`.
"""
