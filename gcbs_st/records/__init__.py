"""What finished runs left: their folders, figures and tables.

In: folders. Out: records, statistics, tables.
May import: `batches`, `config`, `files`.
"""
