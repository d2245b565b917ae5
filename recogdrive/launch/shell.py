"""Commands as a person pastes them into a shell."""

import re
import shlex
from collections.abc import Mapping, Sequence

_FLAG = re.compile(r"(--[A-Za-z_-]+=)(.+)", re.DOTALL)
_NEEDS_SINGLE_QUOTES = re.compile(r'["$`\\!]')


def quoted(word: str) -> str:
    """A word with as few quotes as a shell needs: only a flag's value, and double ones around single ones."""
    flag = _FLAG.fullmatch(word)
    if flag is not None:
        return flag[1] + quoted(flag[2])
    if "'" in word and not _NEEDS_SINGLE_QUOTES.search(word):
        return f'"{word}"'
    return shlex.quote(word)


def shell_line(variables: Mapping[str, str], command: Sequence[str]) -> str:
    """A command with variables before it, on one line."""
    return " ".join([*(f"{name}={quoted(value)}" for name, value in variables.items()), *map(quoted, command)])
