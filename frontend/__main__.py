"""`python -m frontend`: one frontend process."""

import argparse
import sys

from frontend.process import Frontend
from shared.process import run
from shared.settings import EXIT_SETTINGS, SettingsError, load_frontend
from shared.telemetry import set_up_logs
from shared.tracing import TracingUnavailable, open_tracer
from shared.version import VERSION


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m frontend",
        description="Run one frontend: it takes OpenAI requests over HTTP and answers them through workers.",
        epilog="Example: SLUICE_API_KEY=sk-… SLUICE_PORT=8088 python -m frontend",
    ).parse_args()
    try:
        settings = load_frontend()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    set_up_logs(settings.log_level, settings.log_format or "json")
    try:
        tracer = open_tracer(settings.otel, "frontend", VERSION)
    except TracingUnavailable as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    status = run(lambda: Frontend(settings, tracer).run())
    tracer.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
