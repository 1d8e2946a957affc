"""Reads a `.env` file: NAME=value lines, quotes where a value needs them, and an error with its line for anything else.

The grammar, line by line:

    # a comment                       ignored, as are empty lines
    NAME=value                        blanks around name and value are dropped; ` #` begins a comment
    export NAME=value                 the same, so that a shell can read the file too
    NAME='as it stands'               nothing inside is special
    NAME="with \\n, \\t, \\" and \\\\"     those four escapes; nothing else is special

There is no interpolation and no value over several lines.
"""

import re
from dataclasses import dataclass

from shared.settings.problems import Problem

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")\s*(?:#.*)?""")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and the line that it stands on."""

    text: str
    line: int


def parse(content: str, file_name: str) -> tuple[dict[str, Entry], list[Problem]]:
    """The entries by name, and a problem for every line that does not fit the grammar."""
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    for number, line in enumerate(content.removeprefix("\ufeff").split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        place = f"{file_name} line {number}"
        match = _LINE.fullmatch(stripped)
        value = _value(match[2]) if match else None
        if match is None or value is None:
            # The line itself is not shown: it may hold a secret.
            problems.append(
                Problem(place, "expected NAME=value" if match is None else "expected a value with closed quotes")
            )
        elif match[1] in entries:
            problems.append(Problem(place, f"{match[1]} stands on line {entries[match[1]].line} already; keep one"))
        else:
            entries[match[1]] = Entry(value, number)
    return entries, problems


def _value(raw: str) -> str | None:
    """The value that a right-hand side stands for; None if its quotes are not closed or text follows them."""
    if not raw.startswith(("'", '"')):
        return re.split(r"(?:^|\s)#", raw, maxsplit=1)[0].strip()
    match = _QUOTED.fullmatch(raw)
    if match is None:
        return None
    if match[1] is not None:
        return match[1]
    return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[0]), match[2])


def quoted(text: str) -> str:
    """`text` as a right-hand side that `parse` reads back, with quotes only where they are needed."""
    if re.fullmatch(r"[^\s'\"#]*", text):
        return text
    return '"' + "".join({"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}.get(sign, sign) for sign in text) + '"'
