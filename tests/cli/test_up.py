"""`sluice up` as a newcomer meets it: the real processes, from an empty directory to a streamed answer, and to nothing."""

import contextlib
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from tests.cli.processes import children_of, environment, eventually, sluice, sluice_running, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


@contextlib.contextmanager
def gateway(directory: Path, *arguments: str, **settings: str):
    """A `sluice up` that is ready, its process and what the banner says."""
    with sluice_running("up", *arguments, directory=directory, **{"SLUICE_PORT": "0", **settings}) as up:
        up.wait_for(r"Ctrl-C stops it")
        yield up


def banner(up) -> dict[str, str]:
    said = {title: up.wait_for(rf"^  {title} +(.*)$")[1] for title in ("Base URL", "API key", "Models", "Redis")}
    return said | {"curl": up.wait_for(r"^curl .*$")[0]}


def test_from_an_empty_directory_to_a_streamed_answer_and_to_nothing(tmp_path: Path):
    with gateway(tmp_path) as up:
        said = banner(up)
        key, _, origin = said["API key"].partition("  ")
        assert key == (tmp_path / ".sluice" / "api-key").read_text().strip()
        assert origin == "(made now, kept in .sluice/api-key)"
        assert said["Models"].split(", ")[0] == "echo"
        assert said["Redis"] == "its own; keys and usage stay in .sluice/redis"
        page = httpx2.get(up.wait_for(r"^  Dashboard +(\S+)")[1])
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")

        if shutil.which("curl"):
            pasted = subprocess.run(["sh", "-c", said["curl"]], capture_output=True, text=True, timeout=20).stdout
        else:
            words = shlex.split(said["curl"])
            headers = dict(word.split(": ", 1) for word in words if ": " in word and not word.startswith("{"))
            pasted = httpx2.post(words[2], headers=headers, content=words[-1], timeout=20).text
        assert pasted.startswith("data: {")
        assert pasted.endswith("data: [DONE]\n\n")

        wrong = httpx2.get(f"{said['Base URL']}/models", headers={"authorization": "Bearer wrong"})
        assert wrong.status_code == 401, "never open without being asked"

        chat = sluice("chat", "one two three", directory=tmp_path, SLUICE_PORT=str(httpx2.URL(said["Base URL"]).port))
        assert (chat.stdout, chat.returncode) == ("one two three\n", 0)

        children = children_of(up.process.pid)
        assert len(children) == 3
        redis_directory = Path((tmp_path / ".sluice" / "redis-url").read_text().strip().removeprefix("unix://")).parent
        began = time.monotonic()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(10) == 0
        assert time.monotonic() - began < 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert not redis_directory.exists()
    left = sorted(path.name for path in (tmp_path / ".sluice").iterdir())
    assert left == [".gitignore", "api-key", "redis", "secret-key"]
    assert (tmp_path / ".sluice" / "redis").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_on_a_terminal_lines_are_for_people(tmp_path: Path):
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "cli", "up"]
    settings = environment(SLUICE_PORT="0", SLUICE_LOG_LEVEL="info")
    up = subprocess.Popen(command, cwd=tmp_path, env=settings, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    said = b""
    try:
        with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as screen:  # the end of a terminal is an error
            while b"Ctrl-C stops it" not in said:
                said += screen.read(65536)
            up.send_signal(signal.SIGINT)
            while piece := screen.read(65536):
                said += piece
        assert up.wait(10) == 0
    finally:
        up.kill()
    assert re.search(rb"frontend \| \x1b\[0m\d\d:\d\d:\d\d info +frontend\.process: frontend f-\S+ listens on", said), (
        said
    )
    assert re.search(rb"\d\d:\d\d:\d\d 200 GET /v1/models [\d.]+ ms request_id=req_", said), said
    assert b"/health/ready" not in said, "who only looks leaves no line"


@pytest.mark.slow
def test_keys_for_callers_outlive_the_gateway_and_a_second_one_beside_it_keeps_nothing(tmp_path: Path):
    with gateway(tmp_path) as up:
        base_url = banner(up)["Base URL"]
        port = {"SLUICE_PORT": str(httpx2.URL(base_url).port)}
        made = sluice("keys", "create", "Ada", directory=tmp_path, **port)
        key = made.stdout.strip()
        assert httpx2.get(f"{base_url}/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        with gateway(tmp_path) as beside:
            assert "another Redis runs on the data" in beside.output()
            there = httpx2.get(f"{banner(beside)['Base URL']}/models", headers={"authorization": f"Bearer {key}"})
            assert there.status_code == 401
    with gateway(tmp_path) as again:
        base_url = banner(again)["Base URL"]
        assert httpx2.get(f"{base_url}/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert "Ada" in sluice("keys", "list", directory=tmp_path, SLUICE_PORT=str(httpx2.URL(base_url).port)).stdout


@pytest.mark.slow
def test_processes_started_by_hand_join_and_each_knows_only_its_own_secrets(tmp_path: Path):
    secrets = {
        "OPENAI_API_KEY": "sk-openai-hidden",
        "KIMI_API_KEY": "sk-kimi-hidden",
        "SLUICE_API_KEY": "key-of-callers",
    }
    nowhere = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "KIMI_BASE_URL": "http://127.0.0.1:9/v1"}
    with gateway(tmp_path, "--frontends", "2", "--workers", "kimi=2", **secrets, **nowhere) as up:
        said = banner(up)
        assert "hidden" not in up.output()
        assert "key-of-callers" not in up.output(), "a key that somebody set does not go into a log"
        assert '"Authorization: Bearer $SLUICE_API_KEY"' in said["curl"]

        expected = {
            "-m frontend": {"SLUICE_API_KEY"},
            "-m workers openai": {"OPENAI_API_KEY"},
            "-m workers kimi": {"KIMI_API_KEY"},
        }
        seen = []
        for pid, command in children_of(up.process.pid).items():
            environ = Path(f"/proc/{pid}/environ").read_text().split("\0")
            held = {line.partition("=")[0] for line in environ} & set(secrets)
            for ending, allowed in expected.items():
                if command.endswith(ending):
                    seen.append(ending)
                    assert held == allowed
        assert sorted(seen) == sorted([*expected, "-m frontend", "-m workers kimi"])

        port = httpx2.URL(said["Base URL"]).port
        second = sluice("up", directory=tmp_path, SLUICE_PORT=str(port))
        assert "Address already in use" in second.stderr, "though frontends of one gateway share the port"

        taken = sluice("frontend", directory=tmp_path, SLUICE_PORT=str(port), **secrets)
        assert (taken.returncode, taken.stderr) == (
            1,
            f"Cannot start: cannot listen on 127.0.0.1 port {port}: Address already in use. SLUICE_PORT chooses another. "
            "Frontends of one user can share it: SLUICE_SHARE_PORT=on.\n",
        )
        shares = {"SLUICE_PORT": str(port), "SLUICE_SHARE_PORT": "on", **secrets}
        with sluice_running("frontend", directory=tmp_path, **shares) as third:
            third.wait_for(rf"listens on 127\.0\.0\.1:{port}")

        by_hand = start([sys.executable, "-m", "workers", "echo"], tmp_path / "worker.txt", tmp_path, {})
        try:
            headers = {"authorization": "Bearer key-of-callers"}

            def offers_echo() -> bool:
                models = httpx2.get(f"{said['Base URL']}/models", headers=headers).json()["data"]
                return "echo" in {model["id"] for model in models}

            assert eventually(offers_echo), (tmp_path / "worker.txt").read_text()
        finally:
            by_hand.kill()
            by_hand.wait()


@pytest.mark.slow
def test_a_public_pass_through_makes_no_key_and_lets_nobody_in_without_one(tmp_path: Path):
    through = {"DASHSCOPE_NATIVE_CALLER_KEYS": "on", "DASHSCOPE_NATIVE_BASE_URL": "http://127.0.0.1:9"}
    with gateway(tmp_path, **through) as up:
        said = banner(up)
        assert said["API key"] == "your own upstream key  (this gateway has none itself)"
        assert '"Authorization: Bearer $YOUR_KEY"' in said["curl"]
        assert httpx2.get(f"{said['Base URL']}/models").status_code == 401
    assert not (tmp_path / ".sluice" / "api-key").exists()


@pytest.mark.slow
def test_what_crashes_comes_back_redis_too(tmp_path: Path):
    with gateway(tmp_path) as up:
        said = banner(up)
        for ending in ("-m frontend", "-m workers echo", "redis-server"):
            pid = next(pid for pid, command in children_of(up.process.pid).items() if ending in command)
            os.kill(pid, signal.SIGKILL)
        up.wait_for(r"frontend was killed by SIGKILL; starting it again in 0\.\d s$")
        up.wait_for(r"echo was killed by SIGKILL; starting it again in 0\.\d s$")
        up.wait_for(r"redis ended \(status -9\); starting it again in 0\.\d s$")
        headers = {"authorization": f"Bearer {said['API key'].split()[0]}"}
        body = {"model": "echo", "messages": [{"role": "user", "content": "back again"}]}

        def answers() -> bool:
            try:
                answer = httpx2.post(f"{said['Base URL']}/chat/completions", json=body, headers=headers, timeout=20)
            except httpx2.HTTPError:
                return False
            return answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == "back again"

        assert eventually(answers), up.output()


@pytest.mark.slow
def test_nothing_outlives_a_gateway_that_is_killed_and_the_next_one_sweeps(tmp_path: Path):
    with gateway(tmp_path) as up:
        children = children_of(up.process.pid)
        left = Path((tmp_path / ".sluice" / "redis-url").read_text().strip().removeprefix("unix://")).parent
        up.process.kill()
        assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert left.exists()
    with gateway(tmp_path) as up:
        assert not left.exists()
        assert banner(up)["API key"].endswith("(kept in .sluice/api-key)")
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(10) == 0


def test_a_taken_port_and_wrong_settings_are_sentences_and_start_nothing(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = sluice("up", directory=tmp_path, SLUICE_PORT=port)
        assert result.returncode == 1
        assert result.stderr == (
            f"Cannot listen on 127.0.0.1 port {port}: Address already in use. "
            "Stop what listens there, or choose another with SLUICE_PORT=8089 (and SLUICE_HOST).\n"
        )
    result = sluice("up", directory=tmp_path, SLUICE_PORT="x", SLUICE_AUTH="maybe")
    assert result.returncode == 78
    assert result.stderr.splitlines() == [
        "2 problems in the settings:",
        "  SLUICE_PORT: expected a whole number from 0 to 65535, got 'x'",
        "  SLUICE_AUTH: expected on or off, got 'maybe'",
    ]
    assert result.stdout == ""


def test_an_unknown_provider_is_told(tmp_path: Path):
    result = sluice("up", "--workers", "opnai=2", directory=tmp_path, SLUICE_PORT="0")
    assert result.returncode == 1
    assert result.stderr.startswith("There is no configured provider opnai; configured: echo.")
    result = sluice("up", "--workers", "openai", directory=tmp_path)
    assert result.returncode == 2
    assert "expected NAME=N such as openai=3" in result.stderr
