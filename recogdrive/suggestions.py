"""What to say to a name that does not exist."""

import difflib
from collections.abc import Iterable

_LISTED = 12


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence naming the nearest of `known`, or listing them where none is near; starts with a space."""
    by_lower = {k.lower(): k for k in known}
    close = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    if close:
        return f" Did you mean {' or '.join(map(repr, close))}?"
    if not by_lower:
        return " There is none."
    names = list(by_lower.values())
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f" There is: {', '.join(names[:_LISTED])}{more}."
