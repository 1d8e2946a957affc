"""Settings of every process, from the environment and `.env`; the only part of Sluice that reads `os.environ`.

    settings = load_frontend()            # or load_worker("openai"), load_up()

Either all is well, or `SettingsError` lists every problem at once, before anything has started. `row.py` says what a
setting is, `model.py` is the table of all of them, `load.py` reads and checks.
"""

from shared.settings.handover import child_environment
from shared.settings.kinds import split_model
from shared.settings.load import UpSettings, check, configured_providers, load_frontend, load_up, load_worker
from shared.settings.model import FrontendSettings, ProviderSettings, SharedSettings, WorkerSettings
from shared.settings.problems import EXIT_SETTINGS, Problem, SettingsError
from shared.settings.providers import Deadlines
from shared.settings.secret import Secret
from shared.settings.source import process_environment

__all__ = [
    "EXIT_SETTINGS",
    "Deadlines",
    "FrontendSettings",
    "Problem",
    "ProviderSettings",
    "Secret",
    "SettingsError",
    "SharedSettings",
    "UpSettings",
    "WorkerSettings",
    "check",
    "child_environment",
    "configured_providers",
    "load_frontend",
    "load_up",
    "load_worker",
    "process_environment",
    "split_model",
]
