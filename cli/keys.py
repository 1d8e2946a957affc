"""`sluice keys`: the gateway's own key, and keys for its callers; `cli/callers.py` does the work."""

import sys
from typing import Annotated, Literal

import typer

from cli.callers import Place, Wanted
from shared.settings import load_up, process_environment

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="markdown",
    help="The API key of the gateway in this directory; and keys for its callers.\n\n"
    "Without a command: show the gateway's own key, and make it the first time. Only the key goes to standard output.\n\n"
    "The gateway's own key is its master key: it may everything, and makes keys for callers, which have limits and can be "
    "revoked. Those work at once on every frontend. A key is shown once, when it is made; later on it is named by its id or "
    "its name.\n\n"
    "Examples:\n\n"
    '    curl -H "Authorization: Bearer $(sluice keys)" http://127.0.0.1:8088/v1/models\n\n'
    "    sluice keys create Ada --requests-per-minute 60 --daily-tokens 1M --expires 90d\n\n"
    "    sluice keys list",
)

Which = Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, or its name.")]
Url = Annotated[str | None, typer.Option(help="Gateway to talk to. Default: that of this directory.")]
Master = Annotated[str | None, typer.Option("--key", help="Master key for it. Default: the one of this directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, as the HTTP API answers it.")]
Limit = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="At most; `50k` and `2M` are understood, `none`: any.")
]
Patterns = list[str] | None
Models = Annotated[
    Patterns, typer.Option("--model", help="Only this model, or pattern with `*`; several. `none`: all.")
]
Providers = Annotated[Patterns, typer.Option("--provider", help="Only this provider; several. `none`: all.")]
Expires = Annotated[
    str | None, typer.Option(metavar="WHEN", help="`90d`, `12h`, a date, ISO 8601 or Unix seconds; `none`: never.")
]
Priority = Annotated[Literal["normal", "low"] | None, typer.Option(help="`low` waits behind everybody else.")]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="DURATION", help="Answer identical requests from memory for so long, such as `10m`."
    ),
]


@app.callback()
def own(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    found = load_up(dict(process_environment())).frontend
    print(found.api_key_origin, file=sys.stderr)
    for one in found.api_keys:
        print(one.reveal())


@app.command()
def create(  # noqa: PLR0913, PLR0917 - each option is a parameter
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.")],
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrent_requests: Limit = None,
    daily_tokens: Limit = None,
    monthly_tokens: Limit = None,
    models: Models = None,
    providers: Providers = None,
    expires: Expires = None,
    priority: Priority = None,
    cache: Cache = None,
    url: Url = None,
    key: Master = None,
    as_json: Json = False,
) -> None:
    """Make a key for a caller. What is not limited here is not limited.

    The key itself is shown this once, and is all that goes to standard output.

    Examples:

        sluice keys create Ada --requests-per-minute 60 --concurrent-requests 5

        KEY=$(sluice keys create nightly --model 'gpt-4o*' --daily-tokens 2M --priority low --expires 2030-01-01)
    """
    limits = (requests_per_minute, tokens_per_minute, concurrent_requests, daily_tokens, monthly_tokens)
    Place(url, key, as_json).create(Wanted(name, limits, models, providers, expires, priority, cache))


@app.command("list")
def show_all(url: Url = None, key: Master = None, as_json: Json = False) -> None:
    """List all keys of callers, with their limits; also those that were revoked or have expired.

    Example:

        sluice keys list
    """
    Place(url, key, as_json).list()


@app.command()
def show(which: Which, url: Url = None, key: Master = None, as_json: Json = False) -> None:
    """Show one key of a caller: what it may do, and since when.

    Example:

        sluice keys show Ada
    """
    Place(url, key, as_json).show(which)


@app.command()
def update(  # noqa: PLR0913, PLR0917 - each option is a parameter
    which: Which,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrent_requests: Limit = None,
    daily_tokens: Limit = None,
    monthly_tokens: Limit = None,
    models: Models = None,
    providers: Providers = None,
    expires: Expires = None,
    priority: Priority = None,
    cache: Cache = None,
    url: Url = None,
    key: Master = None,
    as_json: Json = False,
) -> None:
    """Change what a key may do; what is not named stays as it is, `none` lifts a limit. It counts at once.

    Examples:

        sluice keys update Ada --tokens-per-minute 50k --daily-tokens none

        sluice keys update 1f2e3d4c --model gpt-4o-mini --model 'kimi/*'
    """
    limits = (requests_per_minute, tokens_per_minute, concurrent_requests, daily_tokens, monthly_tokens)
    Place(url, key, as_json).update(which, Wanted(name, limits, models, providers, expires, priority, cache))


@app.command()
def revoke(which: Which, url: Url = None, key: Master = None, as_json: Json = False) -> None:
    """End a key for good: from now on it is refused everywhere. It stays in the list, and so does its usage.

    Example:

        sluice keys revoke Ada
    """
    Place(url, key, as_json).revoke(which)


@app.command()
def rotate(
    which: Which,
    grace: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the key before still serves, such as `1h`.")
    ] = "0",
    url: Url = None,
    key: Master = None,
    as_json: Json = False,
) -> None:
    """Exchange a key: a new one with the same id, name, limits and usage. The one before ends now, or after `--grace`.

    The new key is all that goes to standard output.

    Example:

        sluice keys rotate Ada --grace 24h
    """
    Place(url, key, as_json).rotate(which, grace)
