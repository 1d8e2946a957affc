"""`python -m bench`: measure, print a table and the ratios, keep the figures.

Everything runs on this machine: callers, upstream, the plain proxy and the gateway take turns on the same cores, so only the
ratios travel. CPU is user and system time of the measured processes alone.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.targets import KEY, Target, litellm, passthrough, process, sluice, upstream

RATE = 20
RESULTS = Path(__file__).parent / "results"
MEBIBYTE = 1024 * 1024


def run_load(target: Target, on_mark: Callable[[str], None], **plan: Any) -> dict[str, Any]:
    """Run one load against the target; `on_mark` is called at both ends of the window."""
    marks: dict[str, Any] = {}
    with process("bench.load", json.dumps({"port": target.port, "key": KEY, **plan})) as child:
        assert child.stdout is not None
        for line in child.stdout:
            found: dict[str, Any] = json.loads(line)
            if "mark" not in found:
                return found | {"marks": marks}
            on_mark(found["mark"])
            marks[found["mark"]] = found
    raise RuntimeError("the load ended without a result")


def measure(target: Target, **plan: Any) -> dict[str, Any]:
    """CPU a token in µs by part, tokens a second, memory, times to the first token."""
    cpu: dict[str, dict[str, float]] = {}
    memory = target.memory()
    grown: dict[str, int] = {}

    def on_mark(name: str) -> None:
        cpu[name] = target.cpu()
        if name == "end":
            grown.update({role: size - memory[role] for role, size in target.memory().items()})

    result = run_load(target, on_mark, **plan)
    start, end = result["marks"]["start"], result["marks"]["end"]
    tokens = end["tokens"] - start["tokens"]
    seconds = end["time"] - start["time"]
    spent = {role: cpu["end"][role] - cpu["start"][role] for role in target.parts}
    first = result["first_tokens_ms"]
    return {
        "target": target.name,
        "plan": plan,
        "cpu_us_per_token": {role: 1e6 * used / max(1, tokens) for role, used in spent.items()},
        "cpu_us_per_token_total": 1e6 * sum(spent.values()) / max(1, tokens),
        "cpu_ms_per_request": 1e3 * sum(spent.values()) / plan["streams"],
        "tokens_per_second": tokens / seconds,
        "memory_growth_mib": {role: size / MEBIBYTE for role, size in grown.items()},
        "memory_mib": {role: (memory[role] + grown.get(role, 0)) / MEBIBYTE for role in memory},
        "first_token_ms": {"p50": first[len(first) // 2], "p99": first[int(len(first) * 0.99)]} if first else {},
        "wrong": result["wrong_count"],
        "wrong_examples": result["wrong"],
    }


def steady(target: Target, streams: int, window: float) -> dict[str, Any]:
    ramp = max(1.0, streams / 250)
    return measure(
        target, streams=streams, rate=RATE, ramp=ramp, window=window, tokens=int(RATE * (2 * ramp + window + 1))
    )


def report(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for column in ("", "CPU µs/token", "by part", "tokens/s", "first token p50/p99 ms", "grown MiB", "wrong"):
        table.add_column(column)
    for row in rows:
        parts = "  ".join(f"{role} {value:.0f}" for role, value in row["cpu_us_per_token"].items())
        grown = "  ".join(f"{role} {value:.0f}" for role, value in row["memory_growth_mib"].items())
        first = row["first_token_ms"]
        times = f"{first['p50']:.1f} / {first['p99']:.1f}" if first else "-"
        table.add_row(
            row["target"], f"{row['cpu_us_per_token_total']:.1f}", parts, f"{row['tokens_per_second']:.0f}", times, grown,
            str(row["wrong"]),
        )  # fmt: skip
    console.print(table)
    ours = rows[-1]
    for other in rows[:-1]:
        if other["cpu_us_per_token_total"]:
            ratio = ours["cpu_us_per_token_total"] / other["cpu_us_per_token_total"]
            console.print(f"  {ours['target']} / {other['target']}: CPU per token × {ratio:.2f}")
    console.print()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 50, 200, 500, 1000], help="concurrent streams")
    parser.add_argument("--window", type=float, default=6.0, help="seconds that are measured in each scenario")
    parser.add_argument("--only", choices=("steady", "flat", "latency", "whole"), help="one kind of scenario")
    parser.add_argument("--target", choices=("sluice", "proxy"), help="one target only")
    parser.add_argument("--litellm", type=Path, metavar="COMMAND", help="also LiteLLM's proxy: its `litellm` command")
    chosen = parser.parse_args()
    console = Console()
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        port = stack.enter_context(upstream())
        direct = Target("upstream itself", port)
        targets = []
        if chosen.target != "sluice":
            targets.append(stack.enter_context(passthrough(port)))
        if chosen.litellm:
            targets.append(stack.enter_context(litellm(port, chosen.litellm)))
        if chosen.target != "proxy":
            targets.append(stack.enter_context(sluice(port)))

        def scenario(title: str, kind: str, run: Callable[[Target], dict[str, Any]], *more: Target) -> None:
            if chosen.only not in (None, kind):
                return
            rows = []
            for target in (*more, *targets):
                rows.append(run(target))
                time.sleep(0.5)
            report(console, title, rows)
            results.extend({"scenario": title} | row for row in rows)

        for target in targets:  # connections, code paths and allocators warm
            measure(target, streams=20, rate=0, tokens=50)
        for streams in chosen.streams:
            run_steady = partial(steady, streams=streams, window=chosen.window)
            scenario(f"{streams} streams of {RATE} tokens/s", "steady", run_steady)
        scenario("flat out, 32 streams of 1000 tokens", "flat", lambda t: measure(t, streams=32, rate=0, tokens=1000))
        scenario(
            "20 requests/s, 10 tokens each", "latency",
            lambda t: measure(t, streams=200, rate=RATE, tokens=10, ramp=10.0), direct,
        )  # fmt: skip
        scenario(
            "not streamed, 50 requests/s of 20 tokens", "whole",
            lambda t: measure(t, streams=250, rate=0, tokens=20, ramp=5.0, stream=t.name != "sluice"),
        )  # fmt: skip
        scenario(
            "not streamed, 16 at any time, 20 tokens", "whole",
            lambda t: measure(t, streams=1500, rate=0, tokens=20, concurrent=16, stream=t.name != "sluice"),
        )  # fmt: skip
    _keep(results)
    for row in results:
        if row["scenario"].startswith("not streamed"):
            console.print(f"  {row['scenario']}, {row['target']}: {row['cpu_ms_per_request']:.2f} ms CPU a request")
    wrong = sum(row["wrong"] for row in results)
    console.print(f"{wrong} streams wrong" if wrong else "no stream wrong")
    return 1 if wrong else 0


def _keep(results: list[dict[str, Any]]) -> None:
    """Keep the figures under the commit that they belong to, for comparison with the next."""
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    name = commit.stdout.strip() or "unversioned"
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    sys.exit(main())
