"""One run from its configuration."""

from typing import Any


def __getattr__(name: str) -> Any:
    """``winnow.run.run``, loaded when asked for: a command line with a typing error is refused without torch."""
    if name == "run":
        from winnow.run.execute import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
