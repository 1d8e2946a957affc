"""`sluice simulate`: a simulated upstream by hand, so that every provider can be tried without an account.

The simulators are those of the tests, so they are there in a checkout only.
"""

import difflib

from cli.plan import ROOT
from shared.settings.providers import KNOWN, canonical

ALL = "all"
PACKAGE = "tests.simulators"


class SimulatorTrouble(Exception):
    """There is no such simulator, or there are none at all; the text says what to do."""


def simulator(spelled: str) -> str:
    """The name of the provider whose upstream is to be simulated, however a person spells it. Raises SimulatorTrouble."""
    if not ROOT.joinpath(*PACKAGE.split("."), "__main__.py").is_file():
        raise SimulatorTrouble("The simulators are part of a checkout, not of an installed package: clone the project.")
    name = canonical(spelled)
    if name in (*KNOWN, ALL):
        return name
    near = difflib.get_close_matches(name, [*KNOWN, ALL], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise SimulatorTrouble(f"There is no simulator {spelled!r}, only {', '.join([*KNOWN, ALL])}{hint}")
