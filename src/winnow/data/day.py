"""Chat templates that write today's date, given a day that stays."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

CLOCK = "strftime_now"
"""The function by which a template asks for the date."""
DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxXGuVe"
UNPADDED = "dmHIMSj"


@lru_cache(maxsize=64)
def frozen(template: str, day: str) -> str:
    """A template for which it is always the same day, at midnight.

    Args:
        template: Jinja, as a tokenizer has it.
        day: as ``2026-11-26``.

    Returns:
        The template, which defines the function that it would ask.
    """
    if CLOCK not in template:
        return template
    at = datetime.fromisoformat(day)
    known = {f"%-{one}": at.strftime(f"%{one}").lstrip("0") or "0" for one in UNPADDED}
    known |= {f"%{one}": at.strftime(f"%{one}") for one in DIRECTIVES}
    filters = "".join(f" | replace({one!r}, {text!r})" for one, text in known.items())
    # The line break is taken off by the block before it, so that the template begins as it did.
    return f"{{%- macro {CLOCK}(format) %}}{{{{- format{filters} }}}}{{%- endmacro %}}\n{template}"
