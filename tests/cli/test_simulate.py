"""`sluice simulate`: every provider can be tried without an account."""

import re
import shlex
import signal
from pathlib import Path

import httpx2
import pytest

from shared.settings import configured_providers, load_worker
from shared.settings.providers import KNOWN
from tests.cli.processes import sluice, sluice_running

pytestmark = pytest.mark.slow


def exported(output: str) -> dict[str, str]:
    """The settings that a shell would have after the `export` lines."""
    words = [shlex.split(line)[1] for line in output.splitlines() if line.startswith("export ")]
    return dict(word.split("=", 1) for word in words)


def test_every_provider_has_a_simulator_whose_settings_suffice(tmp_path: Path) -> None:
    with sluice_running("simulate", "all", directory=tmp_path) as running:
        running.wait_for("# ready; Ctrl-C ends it")
        settings = exported(running.output())
        assert configured_providers(settings, None) == list(KNOWN)
        for name in KNOWN:
            assert load_worker(name, settings | {"SLUICE_STATE_DIR": str(tmp_path)}, None).provider.name == name
            assert f"sluice chat --model {name}/{KNOWN[name].models[0]} " in running.output()
        ledgers = re.findall(r"its ledger: (\S+)", running.output())
        assert len(ledgers) == len(KNOWN)
        assert all(httpx2.get(ledger, trust_env=False).status_code == 200 for ledger in ledgers)


@pytest.mark.parametrize("spelled", ["langfast", "HF", "dashscope", "dashscope_native"])
def test_one_of_them_ends_with_ctrl_c(tmp_path: Path, spelled: str) -> None:
    with sluice_running("simulate", spelled, directory=tmp_path) as running:
        running.wait_for("# ready; Ctrl-C ends it")
        assert len(configured_providers(exported(running.output()), None)) == 1
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) == 0
        assert "Traceback" not in running.output()


def test_a_name_that_there_is_not(tmp_path: Path) -> None:
    result = sluice("simulate", "langfest", directory=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("did you mean langfast?\n") and "Traceback" not in result.stderr
