"""rlrun: a config-driven experiment runner for reinforcement learning. `rlrun --help` says how to use it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlrun.inspect_run import LoadedRun, load

__all__ = ["LoadedRun", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and most commands do not need it.
    if name in __all__:
        from rlrun import inspect_run

        return getattr(inspect_run, name)
    raise AttributeError(f"module 'rlrun' has no attribute {name!r}")
