"""How types and shapes are checked in tests: by jaxtyping's import hook, without what makes it slow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, get_type_hints

CHECKED = 3
"""Times that a function defined within another is checked."""
SHAPED = re.compile(r"\[(\w+\.)?(Tensor|ndarray)\b|Batch\b")


def checked(decorate: Callable[..., Any]) -> Callable[..., Any]:
    """Jaxtyping's decorator where there are shapes, and the type checker alone where there are none.

    That binds the arguments of every call once more in Python, and a function that is defined within another is
    compiled anew whenever the outer one is called. The first few of each inner function are checked.
    """
    times: Counter[CodeType] = Counter()

    def decorator(*args: Any, **options: Any) -> Any:
        made = decorate(*args, **options)
        if args:
            return made

        def once(held: Any) -> Any:
            if not isinstance(held, FunctionType):
                return made(held)
            if "<locals>" in held.__qualname__:
                times[held.__code__] += 1
                return made(held) if times[held.__code__] <= CHECKED else held
            return made(held) if _shaped(held) else options["typechecker"](held)

        return once

    return decorator


def _shaped(held: FunctionType) -> bool:
    """Whether it takes or gives tensors; also where that is not known, as names are missing that only mypy reads."""
    try:
        get_type_hints(held)
    except NameError:
        return True
    return any(SHAPED.search(str(kind)) for kind in held.__annotations__.values())
