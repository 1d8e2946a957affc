"""`sluice`: the command line. `sluice --help` lists the commands, `sluice COMMAND --help` teaches each with examples."""

import os
import sys
from typing import Annotated, Literal, NoReturn

import typer

from cli import credentials, keys

# What a command needs is imported when it runs: `sluice --help` answers at once.

RUN, USE, CALLERS = "Run a gateway", "Talk to it", "Keys and usage of callers"
LOOK, CHECKOUT = "Look and mend", "In a checkout of the project"

app = typer.Typer(
    name="sluice",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="An OpenAI-compatible gateway that scales by adding worker processes.\n\n"
    "First run: `sluice up` in one terminal, `sluice chat` in another.",
)

app.add_typer(keys.app, name="keys", rich_help_panel=CALLERS)
app.add_typer(credentials.app, name="credentials", rich_help_panel=LOOK)

Url = Annotated[
    str | None, typer.Option(help="Gateway to talk to. Default: the one that this directory's settings make.")
]
Key = Annotated[str | None, typer.Option(help="API key for it. Default: the one of this directory.")]

EXIT_TROUBLE = 1
EXIT_INTERRUPTED = 130


@app.command(rich_help_panel=RUN)
def up(
    frontends: Annotated[int, typer.Option(min=1, help="Frontend processes; they share the port.")] = 1,
    workers: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Workers of a provider; 0 for none, `echo=1` adds the built-in one."),
    ] = None,
) -> None:
    """Start a whole gateway: Redis, frontends, and a worker for each configured provider.

    A provider is configured when its key is set, in the environment or in `.env` (`sluice settings` lists all). With none, the
    built-in `echo` provider answers. Without `REDIS_URL` a Redis of its own is started. Ctrl-C stops everything in order; a
    process that crashes is started again.

    Examples:

        sluice up

        OPENAI_API_KEY=sk-... sluice up

        sluice up --frontends 2 --workers openai=3 --workers deepseek=2
    """
    from cli.up import Size
    from cli.up import up as run

    raise typer.Exit(run(Size(frontends, dict(_count(text) for text in workers or []))))


def _count(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdecimal() or int(number) > 1000:
        raise typer.BadParameter(f"expected NAME=N such as openai=3, got {text!r}", param_hint="--workers")
    return name, int(number)


@app.command(rich_help_panel=RUN)
def frontend() -> None:
    """Run one frontend process: the HTTP side, which callers talk to.

    Wants `REDIS_URL` (or a `sluice up` in the same directory) and `SLUICE_API_KEY` (or the key that `sluice keys` made).

    Example:

        REDIS_URL=redis://127.0.0.1:6379/0 SLUICE_PORT=8089 sluice frontend
    """
    _become("frontend")


@app.command(rich_help_panel=RUN)
def worker(
    name: Annotated[str, typer.Argument(help="Provider, such as openai, hf, or one of SLUICE_PROVIDER_<NAME>_…")],
) -> None:
    """Run one worker process of a provider. Frontends find it by themselves.

    In the directory of a running `sluice up` it joins that gateway: one more worker, nothing to restart.

    Example:

        DEEPSEEK_API_KEY=sk-... sluice worker deepseek
    """
    _become("workers", name)


@app.command(rich_help_panel=USE)
def chat(
    message: Annotated[list[str] | None, typer.Argument(help="Say this, print the answer, leave.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model. Default: the default model, else the first.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Instructions that stand before the conversation.")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Talk to a running gateway; answers appear as they come.

    Ctrl-C stops an answer, Ctrl-D leaves. `/model NAME` changes the model, `/new` begins anew, `/help` tells the rest.

    Examples:

        sluice chat

        sluice chat --model openai/gpt-4o-mini "Why is the sky blue?"

        git diff | sluice chat "Write a commit message for this:"
    """
    from cli.chat import chat as run
    from cli.gateway import find

    raise typer.Exit(run(find(url, key), message=" ".join(message or []), model=model, system=system))


@app.command("redis-acl", rich_help_panel=LOOK)
def redis_acl(
    password: Annotated[
        str, typer.Option(help="Password to print. Default: a placeholder for one of your own.", show_default=False)
    ] = "<password>",
) -> None:
    """Print the Redis users that frontends, workers and operators need, each with no more rights than that.

    Run each line in `redis-cli` with a password of its own, and name the user in that side's `REDIS_URL`
    (`rediss://sluice-frontend:password@host`). A process whose user lacks a right says so and does not start.

    Example:

        sluice redis-acl
    """
    from shared.redis.rights import SIDES, acl_line

    for side in SIDES:
        typer.echo(acl_line(side, password))


@app.command(rich_help_panel=LOOK)
def doctor() -> None:
    """Check settings, Redis, live processes, the gateway and every configured upstream, and say what to do.

    Ends with status 0 if all is well, 1 if something needs attention.

    Example:

        sluice doctor && echo fine
    """
    from cli.doctor import examine

    raise typer.Exit(examine())


@app.command(rich_help_panel=LOOK)
def settings(
    form: Annotated[
        Literal["table", "dotenv"], typer.Option("--format", help="A table, or a `.env` to edit.")
    ] = "table",
) -> None:
    """Show every setting: its value now, where that comes from, and what it means. Secrets show as ***.

    Examples:

        sluice settings

        sluice settings --format dotenv > .env
    """
    from cli.listings import settings_table
    from shared.settings.render import dotenv_example

    if form == "dotenv":
        print(dotenv_example(), end="")
        return
    raise typer.Exit(settings_table())


@app.command(rich_help_panel=USE)
def models(url: Url = None, key: Key = None) -> None:
    """List the models that a running gateway offers.

    Example:

        sluice models --url http://gateway.internal:8088 --key sk-...
    """
    from cli.gateway import find
    from cli.listings import models_list

    models_list(find(url, key))


@app.command(rich_help_panel=CALLERS)
def usage(  # noqa: PLR0913, PLR0917 - each option is a parameter
    first: Annotated[str | None, typer.Option("--from", help="First day (UTC). Default: the last 30 days.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day. Default: today.")] = None,
    by: Annotated[list[str] | None, typer.Option(metavar="key|model|provider|day", help="Rows; several.")] = None,
    caller: Annotated[
        str | None, typer.Option(help="Only of this key: its id or name, `master`, `anybody` or `foreign`.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only of this provider.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for a spreadsheet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show what callers have used: requests and tokens, by key unless `--by` says otherwise.

    Examples:

        sluice usage

        sluice usage --from 2030-01-01 --to 2030-01-31 --by key --by model

        sluice usage --by day --csv > usage.csv
    """
    from cli.usage import Report

    asked = {"from": first, "to": last, "key": caller, "model": model, "provider": provider}
    Report(url, key, {name: text for name, text in asked.items() if text}, by or ["key"]).show(as_csv, as_json)


@app.command(
    rich_help_panel=CHECKOUT,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench(context: typer.Context) -> None:
    """Measure this gateway side by side with a plain pass-through proxy (in a checkout of the project).

    Example:

        sluice bench --help
    """
    from cli.plan import ROOT

    if not (ROOT / "bench" / "__main__.py").is_file():
        _give_up(
            "The benchmark is part of a checkout, not of an installed package: clone the project, then `make bench`."
        )
    _become("bench", *context.args)


@app.command(rich_help_panel=CHECKOUT)
def simulate(
    name: Annotated[
        str, typer.Argument(help="Provider whose upstream is simulated, such as kimi; `all` for every one.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to answer at. Default: a free one.")] = 0,
) -> None:
    """Simulate a provider's upstream on this machine (in a checkout of the project), to try it without an account.

    Prints the settings that make a gateway use it, and commands to try. The simulated upstream says your words again; words
    such as `sim:fault=drop_mid` in a message tell it to misbehave. Ctrl-C ends it.

    Examples:

        sluice simulate langfast

        sluice simulate kimi --port 9000
    """
    from cli.simulate import PACKAGE, simulator

    _become(PACKAGE, simulator(name), "--port", str(port))


def _environment() -> dict[str, str]:
    from shared.settings import process_environment

    return dict(process_environment())


def _become(module: str, *arguments: str) -> None:
    """Replace this process by `python -m module`, so that signals and the exit status are the other's own."""
    from cli.children import raise_descriptor_limit
    from cli.plan import python_command, python_environment

    raise_descriptor_limit()
    command = python_command(module, *arguments)
    os.execve(command[0], command, python_environment(_environment()))


def _give_up(sentence: str, status: int = EXIT_TROUBLE) -> NoReturn:
    print(sentence, file=sys.stderr)
    raise SystemExit(status)


def main() -> None:
    """Run a command; what a person can mend ends with a sentence on standard error, not with a traceback."""
    from cli.troubles import TROUBLES, exit_status

    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except TROUBLES as trouble:
        _give_up(str(trouble), exit_status(trouble))


if __name__ == "__main__":
    main()
