"""Runs simulated upstreams as a process: `python -m tests.simulators NAME [--port N]`, or `all` for every one.

Prints the settings that let Sluice use them, ready for a shell, then serves until it is interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import trio

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


async def serve(names: list[str], port: int) -> None:
    """Start the simulators, print their settings, and serve until cancelled."""
    async with trio.open_nursery() as nursery:
        for name in names:
            simulator = await nursery.start(SIMULATORS[name]().serve, port)
            print(f"# {name}", *(f"export {key}={value}" for key, value in simulator.settings.items()), sep="\n")
        print("# ready; interrupt to stop", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulators", description=__doc__)
    parser.add_argument("name", choices=[*SIMULATORS, "all"])
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    names = list(SIMULATORS) if options.name == "all" else [options.name]
    if options.port and len(names) > 1:
        parser.error("--port goes with one simulator")
    try:
        trio.run(serve, names, options.port)
    except* KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
