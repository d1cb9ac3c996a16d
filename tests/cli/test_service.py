"""`ask`, `chat` and `models` against a running service: the answer, what became of the documents, keys and errors."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from comps.core.errors import ModelServerError
from comps.model_servers.scripted import Script, Scripted
from tests.cli.invoking import invoke, invoked
from tests.process import QUICK, free_port
from tests.service import PATIENCE, running

KEY = "s3cret-of-the-caller"


async def test_ask_asks_a_service_with_its_documents_system_message_and_the_question_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bread.txt").write_text("Bread is made of flour.")
    (tmp_path / "a" / "gaudi.md").write_text("Gaudi 2 has 96 GB of memory.")
    server = Scripted([["96", " GB"]])
    async with running(server, monkeypatch) as service:
        arguments = ("ask", "-", "--url", f"{service.url}/v1/", "-d", str(tmp_path / "a"), "--max-tokens", "7")
        done = await invoke(*arguments, "--system", "Be brief.", stdin="How much memory has Gaudi 2?\n")
        as_json = await invoke(*arguments, "--json", "--temperature", "0.5", stdin="How much?")
    assert (done.code, done.out, done.err) == (0, "96 GB\n", "")
    (prompt, sampling, _), *_ = server.asked
    assert [message.role for message in prompt] == ["system", "user"]  # type: ignore[union-attr]
    text = str(prompt[1].content)  # type: ignore[union-attr]
    assert text.index("Gaudi 2 has 96 GB") < text.index("Bread is made") < text.index("How much memory has Gaudi 2?")
    assert sampling.max_tokens == 7
    facts = json.loads(as_json.out)
    assert facts.pop("usage")["completion_tokens"] == 2
    assert facts == {
        "model": "scripted",
        "answer": "96 GB",
        "finish_reason": "stop",
        "documents_used": [1, 2],
        "ignored": ["temperature"],
    }
    assert as_json.err == "[ignored by the service: temperature]\n"


async def test_ask_tells_which_documents_a_service_dropped_and_that_an_answer_is_cut(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"Lantern {number} hangs in the harbour. " * 30)
    async with running(Scripted([["one", " two"]], context_window=500), monkeypatch) as service:
        done = await invoke("ask", "Where?", "--url", service.url, "-d", str(tmp_path), "--max-tokens", "1")
    assert (done.code, done.out) == (0, "one\n")
    assert done.err == "[cut short: length; --max-tokens allows more]\n[document 3 (2.txt) was dropped]\n"


@pytest.mark.parametrize("command", [("ask", "?"), ("models",), ("check", "--idle", "0")])
async def test_a_key_is_sent_from_the_flag_or_the_environment_and_never_printed(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comps.cli.path_check.PAUSES", [0.0, 0.001])
    scripts: list[Script] = [["yes"]]
    async with running(Scripted(scripts), monkeypatch, {"USVC_API_KEYS": f"me = {KEY}"}) as service:
        where = ("--through" if command[0] == "check" else "--url", service.url)
        ran = [
            await invoke(*command, *where, "--api-key", KEY),
            await invoke(*command, *where, environment={"OPEA_LLM_API_KEY": KEY}),
            await invoke(*command, *where),
            await invoke(*command, *where, "--api-key", f"{KEY}-wrong"),
        ]
        scripts[:] = [[ModelServerError(f"it saw {KEY}")]]
        echoed = await invoke(*command, *where, "--api-key", KEY)
    assert [one.code for one in ran[:2]] == [0, 0], ran
    assert command[0] == "models" or "it saw ***" in echoed.out + echoed.err
    assert KEY not in echoed.out + echoed.err
    assert all(one.code in (1, 3) and "401" in one.out + one.err for one in ran[2:]), ran
    assert all(KEY not in one.out + one.err for one in ran)
    assert "a key is needed: --api-key, or OPEA_LLM_API_KEY" in ran[2].out + ran[2].err
    assert "know this key" in ran[3].out + ran[3].err or "this key is not known" in ran[3].out


async def test_a_model_that_is_not_served_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Scripted([["yes"]])
    async with running({"one": server, "two": Scripted()}, monkeypatch, {"LLM_NAME": "one"}) as service:
        served = await invoke("ask", "?", "--url", service.url, "--model", "one")
    async with running(other := Scripted([["yes"]]), monkeypatch) as service:  # Its dialect takes any model's name.
        alone = await invoke("ask", "?", "--url", service.url, "--model", "nope")
        chat = await invoke("chat", "--url", service.url, "--model", "nope", stdin="?\n")
    assert (served.code, served.out) == (0, "yes\n")
    for done in (alone, chat):
        assert (done.code, done.out) == (2, "")
        assert done.err == f"opea-llm: --model = nope: {service.url} does not serve it; it serves: scripted\n"
    assert not other.asked
    here = await invoke("ask", "?", "--model", "nope", environment={"MODEL_SERVER": "scripted", "LLM_NAME": "mine"})
    assert (here.code, here.err) == (2, "opea-llm: model: 'nope' is not served here; known: mine\n")


async def test_what_a_service_says_is_quoted_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Scripted([[ModelServerError("the model server answered 500: boom")]]), monkeypatch) as service:
        done = await invoke("ask", "?", "--url", service.url)
    assert done.code == 1
    assert "the service " in done.err
    assert done.err.endswith("the model server answered 500: boom\n")


def test_models_calls_a_model_server_of_the_settings_so() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    remote = {"MODEL_SERVER": "openai_api", "LLM_MODEL_SERVER_ENDPOINT": url, "LLM_NAME": "mine"}
    done = invoked("models", environment=remote)
    assert done.code == 1
    assert "does not answer: the model server cannot be reached" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ask", "?", "--url", "localhost:9000"), 2, "--url = localhost:9000: a URL is needed"),
        (("ask", "?", "--url", "http://u:p@localhost"), 2, "--url: no user or password in the URL"),
        (("ask", "?", "--url", "http://127.0.0.1:{port}"), 1, "the service cannot be reached: http://127.0.0.1:"),
        (("ask", "?", "--url", "http://127.0.0.1:1", "-c", "x.ini"), 2, "--config: no effect with --url"),
        (("ask", "-", "--url", "http://127.0.0.1:1"), 2, "the question is empty"),
        (("check", "--through", "http://127.0.0.1:1", "--settings"), 2, ": --settings: no effect with --through"),
        (("check", "--model", "m"), 2, ": --model: no effect without --through"),
        (("check", "--json"), 2, ": --json: no effect without --through"),
        (("check", "--json", "--model", "m"), 2, ": --model and --json: no effect without --through"),
        (("models", "--url", "http://127.0.0.1:{port}"), 1, "the service cannot be reached: http://127.0.0.1:"),
    ],
)
def test_what_is_wrong_is_one_line_in_the_words_of_the_command_line(
    arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = invoked(*(one.format(port=free_port()) for one in arguments))
    assert (done.code, done.out) == (code, "")
    (line,) = done.err.splitlines()
    assert line.startswith("opea-llm: ")
    assert said in line


async def test_models_lists_those_of_a_service_and_those_of_the_settings_with_what_their_servers_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with running({"scripted": Scripted(context_window=99)}, monkeypatch) as service:
        of_service = await invoke("models", "--url", service.url)
        file = tmp_path / "config.ini"
        remote = f"model_server=openai_api\nmodel_server_endpoint={service.url}\nframework=native\n"
        file.write_text(f"[Model]\nmodel_name=mine\n{remote}[Model.other]\nmodel_server=scripted\n")
        monkeypatch.delenv("LLM_NAME")
        of_settings = await invoke("models", "-c", str(file))
        as_json = await invoke("models", "-c", str(file), "--json")
    assert (of_service.code, of_service.out) == (0, "scripted; context window 99\n")
    assert of_settings.code == 0
    assert of_settings.out == f"mine (openai_api at {service.url}); it knows scripted\nother (scripted)\n"
    assert [row["name"] for row in json.loads(as_json.out)] == ["mine", "other"]


@pytest.fixture
def chatting() -> Iterator[list[subprocess.Popen[str]]]:
    """The chats that a test starts; they are ended."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for one in started:
        one.kill()
        one.communicate()


def start_chat(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "comps", "chat", *arguments],
        env={**os.environ, **QUICK, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_ctrl_c_stops_the_answer_and_not_the_chat(
    monkeypatch: pytest.MonkeyPatch, chatting: list[subprocess.Popen[str]]
) -> None:
    server = Scripted([["word ", asyncio.Event()], ["short"]])

    def interrupted() -> tuple[str, str]:
        assert chat.stdin
        assert chat.stdout
        chat.stdin.write("a long one\n")
        chat.stdin.flush()
        assert chat.stdout.read(5) == "word "
        chat.send_signal(signal.SIGINT)
        return chat.communicate("and a short one\n/quit\nnever asked\n", timeout=PATIENCE)

    async with running(server, monkeypatch) as service:
        chat = start_chat("--url", service.url)
        chatting.append(chat)
        out, err = await asyncio.to_thread(interrupted)
        await asyncio.wait_for(server.closed.wait(), PATIENCE)
    assert (chat.returncode, out, err) == (0, "\nshort\n", "[stopped]\n")
    (asked, *_) = server.asked[-1]
    assert [str(message.content) for message in asked] == ["a long one", "word ", "and a short one"]  # type: ignore[union-attr]


async def test_a_chat_remembers_what_was_said_until_it_is_told_to_forget_and_survives_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("Rain.")
    server = Scripted([["first"], [ModelServerError("it broke")], ["second"], ["third"]])
    async with running(server, monkeypatch) as service:
        chat = start_chat("--url", service.url, "-d", str(tmp_path / "a.txt"), "--system", "Be brief.")
        said = "one\ntwo\n\nthree\n/reset\n/what\nfour\n"
        out, err = await asyncio.to_thread(chat.communicate, said, timeout=PATIENCE)
    assert chat.returncode == 1
    assert out == "first\nsecond\nthird\n"
    assert "opea-llm: " in err
    assert "it broke" in err
    assert "[the conversation is forgotten]\n[/quit (or Ctrl-D) ends the chat" in err
    prompts = [[(message.role, str(message.content)) for message in asked[0]] for asked in server.asked]  # type: ignore[union-attr]
    assert all(prompt[0][0] == "system" for prompt in prompts)
    assert all("Rain." in prompt[-1][1] for prompt in prompts)
    said_in = [[text.rpartition("\n")[2] for role, text in prompt[1:]] for prompt in prompts]
    assert said_in == [["one"], ["one", "first", "two"], ["one", "first", "three"], ["four"]]


async def test_on_a_terminal_a_chat_has_a_prompt_and_ctrl_c_and_ctrl_d_do_what_they_do_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(Scripted([["first"]]), monkeypatch) as service:
        said, code = await asyncio.to_thread(_typed, service.url)
    assert code == 0
    assert said.count("> ") >= 3
    assert "first\r\n" in said
    assert said.count("/quit (or Ctrl-D) ends the chat") >= 2


def _shown(terminal: int, typed: bytes) -> str:
    """What a terminal shows next. A key that is pressed while the terminal is set for a line may be lost: it is pressed
    again."""
    for _ in range(60):
        if select.select([terminal], [], [], 1.0)[0]:
            return os.read(terminal, 1000).decode()
        if len(typed) == 1:
            os.write(terminal, typed)
    raise TimeoutError("the terminal shows nothing")


def _typed(url: str) -> tuple[str, int]:
    """What a terminal shows of a chat in which a question, Ctrl-C and Ctrl-D are typed, and its exit code."""
    ours, theirs = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "comps", "chat", "--url", url],
        env={**os.environ, **QUICK, "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
    )
    os.close(theirs)
    said, typed = "", b""
    for following in (b"one\n", b"\x03", b"\x04"):
        before = said.count("> ")
        while said.count("> ") == before:
            said += _shown(ours, typed)
        typed = following
        os.write(ours, typed)
    with suppress(OSError):  # How the end of a terminal is told.
        while more := _shown(ours, typed):
            said += more
    os.close(ours)
    return said, chat.wait(PATIENCE)
