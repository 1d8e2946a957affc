"""What happens when things break: every row of `docs/reliability.md`, with real processes and faults injected for real."""
