"""Files of the state directory: whole or absent, private, and one winner when many start at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.settings.state import StateDir, StateError, new_api_key, new_secret_key

RACER = """
import sys
from pathlib import Path
from shared.settings.state import StateDir, new_secret_key
print("ready", flush=True)
sys.stdin.readline()
print(*StateDir(Path(sys.argv[1])).read_or_create("secret-key", new_secret_key))
"""


def test_processes_that_start_at_once_agree(tmp_path: Path):
    root = str(Path(__file__).parents[3])
    for attempt in range(3):
        directory = tmp_path / str(attempt)
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": root},
            )
            for _ in range(6)
        ]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=20)[0].split() for racer in racers]
        assert len({text for text, _ in answers}) == 1
        assert [made for _, made in answers].count("True") == 1
        assert sorted(path.name for path in directory.iterdir()) == [".gitignore", "secret-key"]


def test_files_are_private_and_kept_out_of_version_control(tmp_path: Path):
    state = StateDir(tmp_path / "state")
    assert state.read("api-key") is None
    text, made = state.read_or_create("api-key", new_api_key)
    assert made
    assert state.read_or_create("api-key", new_api_key) == (text, False)
    assert (tmp_path / "state" / "api-key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / ".gitignore").read_text() == "*\n"


def test_a_file_that_others_can_read_is_refused(tmp_path: Path):
    path = tmp_path / "secret-key"
    path.write_text("x")
    path.chmod(0o644)
    with pytest.raises(StateError, match=r"secret-key can be read by others \(mode 0644\); run `chmod 600 "):
        StateDir(tmp_path).read("secret-key")


def test_an_empty_file_and_a_directory_that_cannot_be_made_are_told(tmp_path: Path):
    (tmp_path / "secret-key").touch(0o600)
    with pytest.raises(StateError, match="is empty; delete it"):
        StateDir(tmp_path).read_or_create("secret-key", new_secret_key)
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"cannot read .*Not a directory"):
        StateDir(tmp_path / "file").read_or_create("secret-key", new_secret_key)


def test_keys_are_long_and_never_the_same():
    assert len({new_api_key() for _ in range(100)}) == 100
    prefix, name, random = new_api_key().rsplit("-", 2)
    assert (prefix, len(name), len(random)) == ("sk-sluice", 8, 64)
    assert len(new_secret_key()) == 64
