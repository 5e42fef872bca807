"""Where rows come from: files, the hub, installed packages.

In: a configuration of a corpus. Out: a `Dataset` of text columns.
May import: `rows`.
"""
