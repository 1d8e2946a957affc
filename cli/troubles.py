"""What a person can mend: these errors end a command with a sentence, anything else is a defect and keeps its traceback."""

from cli.callers import CallersTrouble
from cli.embedded import NoServer
from cli.gateway import GatewayTrouble
from cli.pool import PoolTrouble
from cli.ports import PortTaken
from cli.simulate import SimulatorTrouble
from cli.up import UnknownProvider
from cli.usage import UsageTrouble
from shared.settings import EXIT_SETTINGS, SettingsError

TROUBLES = (
    SettingsError, PortTaken, NoServer, UnknownProvider, GatewayTrouble, CallersTrouble, PoolTrouble, SimulatorTrouble,
    UsageTrouble,
)  # fmt: skip


def exit_status(trouble: Exception) -> int:
    """The exit status of a command that met `trouble`."""
    return EXIT_SETTINGS if isinstance(trouble, SettingsError) else 1
