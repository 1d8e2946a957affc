"""Which processes make a gateway, with which command and which environment each."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cli.supervisor import ChildPlan
from shared.settings import child_environment
from shared.settings.kinds import Listen

ROOT = Path(__file__).resolve().parent.parent
"""Where the packages lie: a checkout, or site-packages."""


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """`python -m module`, whose modules come from `ROOT` and never from whatever lies in the working directory."""
    return (sys.executable, "-P", "-m", module, *arguments)


def python_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for `python_command`: finds our modules first, and writes its lines at once."""
    behind = environ.get("PYTHONPATH")
    path = f"{ROOT}:{behind}" if behind else str(ROOT)
    return {**environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def on_ports(plans: list[ChildPlan], setting: str, first: Listen | None) -> list[ChildPlan]:
    """Processes that would take the same port get one each: the first the given one, each further the next."""
    if first is None or first.port == 0:
        return plans
    return [
        replace(one, environ={**one.environ, setting: str(first._replace(port=port))})
        for port, one in enumerate(plans, first.port)
    ]


def children(
    frontends: int, workers: Mapping[str, int], environ: Mapping[str, str], overrides: Mapping[str, str]
) -> tuple[list[ChildPlan], list[ChildPlan]]:
    """The frontends, and the workers of each provider; every process gets only the secrets that it needs."""

    def planned(name: str, count: int, command: tuple[str, ...], allowed: Mapping[str, str]) -> list[ChildPlan]:
        names = [name] if count == 1 else [f"{name}.{number}" for number in range(1, count + 1)]
        return [ChildPlan(one, command, python_environment({**allowed, **overrides})) for one in names]

    return (
        planned("frontend", frontends, python_command("frontend"), child_environment(environ, provider=None)),
        [
            plan
            for provider, count in workers.items()
            for plan in planned(
                provider, count, python_command("workers", provider), child_environment(environ, provider=provider)
            )
        ],
    )
