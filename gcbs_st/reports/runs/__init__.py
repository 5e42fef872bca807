"""Folders of finished runs in, one HTML and one Markdown report out."""
