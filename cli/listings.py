"""`sluice settings` and `sluice models`: tables for people."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.gateway import Gateway, client, model_ids
from shared.settings import check
from shared.settings.render import standing


def settings_table() -> int:
    """Print every setting as it stands, then what is wrong with them; the exit status."""
    table = Table(title="Settings (the environment wins over .env)", title_justify="left")
    for title in ("Setting", "Value", "From", "Meaning"):
        table.add_column(title, overflow="fold", no_wrap=title == "Setting")
    for one in standing():
        changed = one.origin != "default"
        table.add_row(
            Text(one.name, style="bold" if changed else ""), one.value, one.origin, Text(one.meaning, style="dim")
        )
    Console().print(table)
    problems = check()
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def models_list(gateway: Gateway) -> None:
    """Print the models of a running gateway, one a line.

    Raises:
        GatewayTrouble: it does not answer or says no.
    """
    with client() as http:
        for model in model_ids(gateway, http):
            print(model)
