"""What is wrong with the settings, all of it at once."""

from dataclasses import dataclass

from shared.settings.secret import MASK

EXIT_SETTINGS = 78
"""Exit status of a process whose settings are wrong (EX_CONFIG of sysexits.h); a supervisor does not restart it."""

_LONGEST_VALUE = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend: the variable (or file) and a sentence that says what was expected and what was found."""

    name: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}"


class SettingsError(Exception):
    """The settings do not allow a start; its text lists every problem, one a line, and no secret."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in the settings:", *(f"  {problem}" for problem in problems)]))


def shown(text: str, secret: bool) -> str:
    """How a value appears in a message: quoted and cut short, or masked."""
    if secret:
        return MASK
    return repr(text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…")
