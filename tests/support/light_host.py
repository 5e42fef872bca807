"""What the host does anew at every save and at every end of a training, done once; what it gives stays the same.

A test that saves ten checkpoints of a tiny model spends most of its time in these two.
"""

from __future__ import annotations

import functools
import gc

import jinja2


def compile_templates_once() -> None:
    """Keeps the code of each template, such as that of model cards, instead of compiling it at each use."""
    if not hasattr(jinja2.Environment.compile, "cache_info"):
        jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)


def spare_what_is_loaded() -> None:
    """Leaves what is in memory now, all imported modules, out of the garbage collection at each training's end."""
    gc.collect()
    gc.freeze()
