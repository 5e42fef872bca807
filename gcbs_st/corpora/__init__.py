"""Where rows come from: files, the hub, installed packages.

In: a corpus block of a configuration. Out: a `Dataset` of text columns.
May import: `rows`, `files`.
"""
