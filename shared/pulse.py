"""Four times a second: how late is the event loop, and may lines that the log's reader did not take go out now?"""

from typing import Final

import trio

from shared.measuring import Measures
from shared.telemetry import dropped_lines, flush_logs

PULSE_SECONDS: Final = 0.25


async def pulse(measures: Measures) -> None:
    """Until cancelled. A loop that is busy shows as sleepers that wake late."""
    lag = measures.histogram("sluice_event_loop_lag_seconds").of()
    measures.read("sluice_log_lines_dropped_total", dropped_lines)
    while True:
        due = trio.current_time() + PULSE_SECONDS
        await trio.sleep_until(due)
        lag.observe(trio.current_time() - due)
        flush_logs()
