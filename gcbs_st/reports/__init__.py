"""What people look at: charts, the page of batches, the page of runs.

In: records, runs and plans. Out: pictures and self-contained HTML pages.
May import: `advice`, `experiments`, `records`, `embeddings`, `batches`, `planners`, `models`, `rows`, `config`, `files`.
"""
