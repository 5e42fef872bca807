"""Which rows train together: embeddings of the rows in, an order whose blocks are the batches out.

One planner per file, one protocol (`Planner`), one registry. A user's own planner is added with

    @register("by_length")
    class ByLengthPlanner: ...

May import: nothing of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gcbs_st.planners.base import Planner, check_batches, check_order
from gcbs_st.planners.best import BestPlanner
from gcbs_st.planners.bisect import BisectPlanner
from gcbs_st.planners.gcbs import GCBSPlanner
from gcbs_st.planners.hobit import HobitPlanner
from gcbs_st.planners.partition import PartitionPlanner
from gcbs_st.planners.random import RandomPlanner
from gcbs_st.planners.random_walk import RandomWalkPlanner
from gcbs_st.planners.tbs import TailBatchPlanner

__all__ = [
    "BestPlanner",
    "BisectPlanner",
    "GCBSPlanner",
    "HobitPlanner",
    "PartitionPlanner",
    "Planner",
    "RandomPlanner",
    "RandomWalkPlanner",
    "TailBatchPlanner",
    "available",
    "check_batches",
    "check_order",
    "make_planner",
    "name_of",
    "register",
]

_REGISTRY: dict[str, Callable[..., Planner]] = {
    "best": BestPlanner,
    "bisect": BisectPlanner,
    "gcbs": GCBSPlanner,
    "hobit": HobitPlanner,
    "partition": PartitionPlanner,
    "random": RandomPlanner,
    "random_walk": RandomWalkPlanner,
    "tbs": TailBatchPlanner,
}


def register(name: str) -> Callable[[Callable[..., Planner]], Callable[..., Planner]]:
    """Returns a decorator that makes a planner class known under a name.

    Raises a ValueError if the name is taken by another class.

    >>> import numpy as np
    >>> from gcbs_st.planners import make_planner, register
    >>> @register("as_they_come")
    ... class AsTheyComePlanner:
    ...     def plan(self, anchors, positives, batch_size, rng):
    ...         return np.arange(len(anchors))
    >>> make_planner("as_they_come").plan(np.eye(3), np.eye(3), 1, np.random.default_rng(0)).tolist()
    [0, 1, 2]
    """

    def add(planner_class: Callable[..., Planner]) -> Callable[..., Planner]:
        if _REGISTRY.get(name, planner_class) is not planner_class:
            raise ValueError(f"planner name {name!r} is taken by {_REGISTRY[name]}; choose another name.")
        _REGISTRY[name] = planner_class
        return planner_class

    return add


def available() -> list[str]:
    """Returns the names that `make_planner` knows, sorted.

    >>> "gcbs" in available()
    True
    """
    return sorted(_REGISTRY)


def name_of(planner: Planner) -> str:
    """Returns the name that a planner is registered under, that of its class if it is not.

    >>> name_of(RandomWalkPlanner())
    'random_walk'
    """
    return next((name for name, made in _REGISTRY.items() if made is type(planner)), type(planner).__name__)


def make_planner(planner: str | Planner, options: Mapping[str, Any] | None = None) -> Planner:
    """Returns a planner, made from a name of `available()` and keyword arguments, or the given object itself.

    Raises a ValueError for an unknown name, an option that the planner does not have, or options with an object, and a
    TypeError for what is neither a name nor an object with a `plan` method.

    >>> make_planner("gcbs", {"quantile": 0.99}).quantile
    0.99
    """
    options = dict(options or {})
    if not isinstance(planner, str):
        if not callable(getattr(planner, "plan", None)) or isinstance(planner, type):
            raise TypeError(
                f"planner: got {planner!r}, expected a name ({', '.join(available())}) or an object with plan()."
            )
        if options:
            raise ValueError(f"planner_options {options} go with a planner's name; {planner!r} is already made.")
        return planner
    if planner not in _REGISTRY:
        raise ValueError(f"planner: got {planner!r}, expected one of {', '.join(available())}.")
    parameters = inspect.signature(_REGISTRY[planner]).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any and (unknown := sorted(set(options) - set(parameters))):
        raise ValueError(
            f"planner_options of {planner!r}: got {', '.join(unknown)}, "
            f"expected some of {', '.join(parameters) or 'none'}."
        )
    return _REGISTRY[planner](**options)
