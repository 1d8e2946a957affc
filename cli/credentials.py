"""`sluice credentials`: see and mend a provider's credential pool; `cli/pool.py` does the work."""

from typing import Annotated

import typer

from cli import pool

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="See and mend the credentials that the workers of a provider share.\n\n"
    "Those of the settings come and go with the workers that have them; minted ones are made by workers; here others can be "
    "added. A credential is named by the beginning of its id. Secrets show masked.\n\n"
    "Example:\n\n"
    "    sluice credentials list openai",
)

Provider = Annotated[str, typer.Argument(help="Provider, such as openai or hf.")]
Id = Annotated[str, typer.Argument(help="Id of the credential, or enough of its beginning.")]


@app.command("list")
def show(provider: Provider) -> None:
    """List a provider's credentials: where each comes from, how it stands, what it is doing.

    Example:

        sluice credentials list openai
    """
    pool.show(provider)


@app.command()
def add(
    provider: Provider,
    extra: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What belongs to the secret, such as a device id.")
    ] = None,
) -> None:
    """Add a credential; its secret is asked for, or read from standard input.

    All workers of the provider use it from now on, and it stays until it is removed or Redis loses its data. A provider that
    is configured without any key does not look for one here.

    Examples:

        sluice credentials add openai

        sluice credentials add openai < key.txt
    """
    pool.add(provider, extra or [])


@app.command()
def test(
    provider: Provider,
    credential: Annotated[str | None, typer.Argument(metavar="ID", help="Only this one. Default: all.")] = None,
) -> None:
    """Have a worker ask the upstream about credentials. One that is accepted is used again, whatever was held against it.

    Ends with status 0 if all are accepted.

    Example:

        sluice credentials test openai
    """
    raise typer.Exit(pool.test(provider, credential))


@app.command()
def rest(
    provider: Provider,
    credential: Id,
    seconds: Annotated[float, typer.Option(min=0, help="How long. 0: end every rest.")] = 3600.0,
    model: Annotated[str, typer.Option("--model", "-m", help="For this model only. Default: for all.")] = "",
) -> None:
    """Let a credential rest: no call uses it, those that run go on.

    Examples:

        sluice credentials rest openai 3f9a --seconds 600

        sluice credentials rest openai 3f9a --seconds 0
    """
    pool.rest(provider, credential, seconds, model)


@app.command()
def remove(provider: Provider, credential: Id) -> None:
    """Remove a credential that was added here or minted. One of the settings goes when no worker has it any more.

    Example:

        sluice credentials remove openai 3f9a
    """
    pool.remove(provider, credential)
