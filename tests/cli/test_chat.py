"""`sluice chat` against a real server: one question, a conversation at a terminal, and everything that can go wrong."""

import contextlib
import fcntl
import os
import pty
import re
import select
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.cli.processes import PATIENT, environment, sluice
from tests.cli.scripted_gateway import KEY, ScriptedGateway

pytestmark = pytest.mark.slow


def test_one_question_one_answer_nothing_else_on_standard_output(tmp_path: Path):
    with ScriptedGateway() as gateway:
        result = sluice("chat", "--url", f"{gateway.url}/v1", "--key", KEY, "why [bold] so?", directory=tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == ("<why><[bold]><so?>\n", "", 0)
    assert gateway.asked == [
        {
            "model": "first",
            "messages": [{"role": "user", "content": "why [bold] so?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_what_is_piped_in_stands_behind_the_question(tmp_path: Path):
    with ScriptedGateway() as gateway:
        sluice(
            "chat", "-m", "x/y", "--system", "Be brief.", "--url", gateway.url, "--key", KEY, "Explain", "this:",
            directory=tmp_path, said="line 1\nline 2\n",
        )  # fmt: skip
    assert gateway.asked[0]["model"] == "x/y"
    assert gateway.asked[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Explain this:\n\nline 1\nline 2"},
    ]


def test_the_gateway_of_the_directory_is_found_with_its_key_and_default_model(tmp_path: Path):
    with ScriptedGateway() as gateway:
        port = str(gateway.server_address[1])
        (tmp_path / ".env").write_text(f"SLUICE_PORT={port}\nSLUICE_API_KEY={KEY}\nSLUICE_DEFAULT_MODEL=second\n")
        assert sluice("chat", "hello", directory=tmp_path).stdout == "<hello>\n"
        assert sluice("models", directory=tmp_path).stdout == "first\nsecond\n"
    assert gateway.asked[0]["model"] == "second"


def test_the_key_of_the_directory_goes_to_no_other_gateway(tmp_path: Path):
    (tmp_path / ".env").write_text(f"SLUICE_API_KEY={KEY}\n")
    with ScriptedGateway() as gateway:
        result = sluice("models", "--url", gateway.url, directory=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("The gateway says: Incorrect API key. `sluice keys` shows")


def breaks_off(request, body):
    request.begin_stream()
    request.delta(content="half ")
    request.event({"error": {"message": "The upstream closed in the middle.", "type": "server_error"}})


def is_cut(request, body):
    request.begin_stream()
    request.delta(content="half ")


def refuses(request, body):
    request.send_json(404, {"error": {"message": "No provider serves the model.", "code": "model_not_found"}})


@pytest.mark.parametrize(
    ("answer", "said", "complaint"),
    [
        (breaks_off, "half \n", "The answer broke off: The upstream closed in the middle.\n"),
        (is_cut, "half \n", "The answer broke off: the connection ended before the answer did.\n"),
        (refuses, "", "The gateway says: No provider serves the model.\n"),
    ],
)
def test_what_goes_wrong_is_a_sentence(tmp_path: Path, answer, said, complaint):
    with ScriptedGateway(answer) as gateway:
        result = sluice("chat", "--url", gateway.url, "--key", KEY, "hello", directory=tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == (said, complaint, 1)


def test_no_gateway_and_no_settings_say_what_to_do(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    result = sluice("chat", "--url", f"http://127.0.0.1:{port}", "--key", KEY, "hello", directory=tmp_path)
    assert result.stderr == (
        f"No gateway answers at http://127.0.0.1:{port}. Start one with `sluice up`, or name another with --url.\n"
    )
    result = sluice("chat", "hello", directory=tmp_path)
    assert result.returncode == 78
    assert "SLUICE_API_KEY: expected the key that callers present" in result.stderr


_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A person at a terminal: types, and reads what appears."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", "chat", *arguments],
            cwd=directory,
            env=environment(TERM="xterm", COLUMNS="200"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # so that Ctrl-C there reaches it
        )
        os.close(theirs)
        self.seen = ""
        self._raw = ""
        self._forgotten = 0

    def types(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def sees(self, pattern: str) -> None:
        """Wait until new text matches; what came before it is forgotten."""
        give_up_at = time.monotonic() + PATIENT
        while not (match := re.search(pattern, self.seen, re.S)):
            if time.monotonic() > give_up_at:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            if select.select([self._ours], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self._raw += os.read(self._ours, 65536).decode(errors="replace")
                    self.seen = _ESCAPES.sub("", self._raw)[self._forgotten :]
        self._forgotten += match.end()
        self.seen = self.seen[match.end() :]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def at_a_terminal(tmp_path: Path):
    opened: list[Terminal] = []

    def open_terminal(gateway: ScriptedGateway) -> Terminal:
        opened.append(Terminal(tmp_path, "--url", gateway.url, "--key", KEY))
        return opened[0]

    yield open_terminal
    for terminal in opened:
        terminal.close()


def test_a_conversation(at_a_terminal):
    with ScriptedGateway() as gateway:
        person = at_a_terminal(gateway)
        person.sees(r"first at http.*you> ")
        person.types("hello you\n")
        person.sees(r"<hello><you>\s+first, 3 tokens, first after [0-9.]+ s, all after [0-9.]+ s")
        person.types("again\n")
        person.sees(r"<again>")
        person.types("/model second\n")
        person.sees(r"Now second\.")
        person.types("/model\n")
        person.sees(r"first\s+second\s+you> ")
        person.types("/system Be brief.\n")
        person.sees(r"Instructions set\.")
        person.types("third\n")
        person.sees(r"<third>\s+second, 3 tokens")
        person.types("/new\n/system\nfourth\n")
        person.sees(r"<fourth>")
        person.types("/what\n")
        person.sees(r"/model NAME")
        person.types("\x04")
        assert person.process.wait(PATIENT) == 0
    asked = [[message["content"] for message in body["messages"]] for body in gateway.asked]
    assert asked == [
        ["hello you"],
        ["hello you", "<hello><you>", "again"],
        ["Be brief.", "hello you", "<hello><you>", "again", "<again>", "third"],
        ["fourth"],
    ]
    assert [body["model"] for body in gateway.asked] == ["first", "first", "second", "second"]


def test_ctrl_c_ends_the_answer_and_its_connection_but_not_the_conversation(at_a_terminal):
    def endless(request, body):
        if body["messages"][-1]["content"] == "hello":
            request.begin_stream()
            request.delta(reasoning_content="hmm ")
            while True:
                request.delta(content="and on ")
                time.sleep(0.01)
        request.begin_stream()
        request.delta(content="fine")
        request.end_well()

    with ScriptedGateway(endless) as gateway:
        person = at_a_terminal(gateway)
        person.sees("you> ")
        person.types("hello\n")
        person.sees(r"hmm and on and on ")
        began = time.monotonic()
        person.types("\x03")
        person.sees(r"first, first after [0-9.]+ s, stopped after [0-9.]+ s\s+you> ")
        assert gateway.left.wait(PATIENT)
        assert time.monotonic() - began < 5
        person.types("and now?\n")
        person.sees("fine")
        person.types("/quit\n")
        assert person.process.wait(PATIENT) == 0
    stopped = gateway.asked[1]["messages"][1]
    assert stopped["role"] == "assistant"
    assert stopped["content"].startswith("and on and on"), "what had come stays in the conversation"


def test_a_refused_question_is_told_and_forgotten(at_a_terminal):
    def once(request, body):
        if len(gateway.asked) == 1:
            refuses(request, body)
        else:
            request.begin_stream()
            request.delta(content="well")
            request.end_well()

    with ScriptedGateway(once) as gateway:
        person = at_a_terminal(gateway)
        person.sees("you> ")
        person.types("one\n")
        person.sees(r"The gateway says: No provider serves the model\.\s+you> ")
        person.types("two\n")
        person.sees("well")
    assert [message["content"] for message in gateway.asked[1]["messages"]] == ["two"]
