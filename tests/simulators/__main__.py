"""Runs simulated upstreams as a process: `python -m tests.simulators NAME [--port N]`, or `all` for every one.

Prints the settings that let Sluice use them, ready for a shell, and commands to try; then serves until it is interrupted.
NAME is a simulator's or that of the provider that calls it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from functools import partial

import trio

from shared.settings.providers import KNOWN
from tests.simulators.dashscope_native import DashScopeNative
from tests.simulators.dialects import DIALECTS
from tests.simulators.flowgpt import FlowGPT
from tests.simulators.http_server import Simulator
from tests.simulators.langfast import Langfast
from tests.simulators.openai_compatible import OpenAICompatible

SIMULATORS: dict[str, Callable[[], Simulator]] = {
    **{name: partial(OpenAICompatible, name) for name in DIALECTS},
    "dashscope_native": DashScopeNative,
    "flowgpt": FlowGPT,
    "langfast": Langfast,
}
PROVIDERS = {name: name for name in SIMULATORS} | {
    "dashscope_compatible": "dashscope",
    "dashscope_native": "dashscope-native",
}
"""The provider that calls a simulator."""
CALLED_BY = {provider: name for name, provider in PROVIDERS.items()}

TO_TRY = {
    "hello wide world": "says your words again",
    "hello wide world sim:chunks=40 sim:gap=0.2": "slowly, in forty pieces",
    "hello wide world sim:fault=drop_mid": "breaks off in the middle",
    "hello wide world sim:status=429 sim:retry_after=7": "refuses",
}


async def serve(names: list[str], port: int) -> None:
    """Start the simulators, print their settings and what to try, and serve until cancelled."""
    async with trio.open_nursery() as nursery:
        for name in names:
            simulator = await nursery.start(SIMULATORS[name]().serve, port)
            print(f"# {name} answers at {simulator.origin}; its ledger: {simulator.origin}/_simulator/ledger")
            print(*(f"export {key}={shlex.quote(value)}" for key, value in simulator.settings.items()), "", sep="\n")
        print(
            "# With these settings, in another terminal:\nsluice up\n\n# And in a third one, where they are not needed:"
        )
        for name in names:
            for words, what in TO_TRY.items():
                provider = PROVIDERS[name]
                print(f'sluice chat --model {provider}/{KNOWN[provider].models[0]} "{words}"  # {what}')
        print("\n# More to try: see tests/simulators/script.py.\n# ready; Ctrl-C ends it", flush=True)
        await trio.sleep_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulators", description=__doc__)
    parser.add_argument("name", choices=[*dict.fromkeys((*SIMULATORS, *CALLED_BY)), "all"])
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    names = list(SIMULATORS) if options.name == "all" else [CALLED_BY.get(options.name, options.name)]
    if options.port and len(names) > 1:
        parser.error("--port goes with one simulator")
    try:
        trio.run(serve, names, options.port)
    except* KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
