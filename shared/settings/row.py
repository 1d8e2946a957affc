"""One setting is one row: its name, how its text is read, its default, and what it means.

A settings class (`model.py`) is a frozen dataclass whose fields are made with `setting()`. The field gives the value its
Python name and type, the row that hangs on it gives everything else, and from the rows come parsing, validation, the table
of the README, `.env.example` and `sluice settings`. Nothing about a setting is written down twice.

A default is text, exactly what a person would write into the environment, so that one parser serves both. An empty text
means "not set"; what that stands for is in the row's meaning.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any


class Expected(ValueError):
    """A text does not fit; the message completes the sentence "expected …"."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a text becomes a value.

    `expects` completes "expected …"; `read` raises `Expected` (or ValueError, which is reported with `expects`); `empty` is the
    value of a setting without text.
    """

    expects: str
    read: Callable[[str], Any]
    empty: Any = None


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. `name` holds `{PREFIX}` where every provider has a setting of its own."""

    name: str
    kind: Kind
    meaning: str
    default: str = ""
    unit: str = ""
    example: str = ""
    secret: bool = False

    @property
    def file_name(self) -> str:
        """The variable that names a file with the value; secrets only."""
        return f"{self.name}_FILE"


def setting(name: str, kind: Kind, meaning: str, **rest: Any) -> Any:
    """A dataclass field that is read from the environment variable `name`; `rest` as in `Row`."""
    return field(metadata={"row": Row(name, kind, meaning, **rest)})


def rows(settings_class: type) -> dict[str, Row]:
    """Field name -> row, for the fields of `settings_class` that are settings, in their order."""
    return {one.name: one.metadata["row"] for one in fields(settings_class) if "row" in one.metadata}
