"""Records of requests, and `opea-llm replay`, which runs them again and shows what differs."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from comps.app import read_settings
from comps.core.errors import ModelServerError, SettingsError
from comps.core.ports import Answer
from comps.core.types import (
    Document,
    Finished,
    GenerationRequest,
    Message,
    ModelInfo,
    Prompt,
    Sampling,
    TextDelta,
    Usage,
)
from comps.model_servers.scripted import Scripted
from comps.recording.drafts import Draft
from comps.recording.record import MOST_TEXT, _request_object, _Texts, request_in
from comps.recording.recorder import Recorder
from comps.settings import Settings
from tests.cli.invoking import Ran, invoke
from tests.service import Able, Service, running, until_in_flight

QUESTION = {
    "messages": [{"role": "user", "content": "Where is it? My key is sk-abcdefghijklmnopqrstuvwx."}],
    "documents": [{"title": "A", "text": "It is in the harbour."}, {"title": "B", "text": "Bread is made of flour."}],
    "max_tokens": 5,
    "stop": ["\n\n"],
    "stream": True,
}
OPENAI = {"LLM_DIALECTS": "openai,opea"}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]


async def recorded(
    monkeypatch: pytest.MonkeyPatch, folder: Path, server: Scripted, *bodies: Any, texts: bool = True
) -> list[dict[str, Any]]:
    """The records of these bodies."""
    environment = {"LOG_RECORD": str(folder), "LOG_RECORD_PROMPTS": str(texts), **OPENAI}
    async with running(server, monkeypatch, environment) as service:
        for body in bodies:
            await service.post(body, **{"x-request-id": "../one"})
    for name in environment:
        monkeypatch.delenv(name)
    return records(folder)


async def test_a_record_has_what_was_asked_decided_and_answered_when_and_by_whom_without_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "records"
    monkeypatch.setenv("LLM_API_KEY", "the-key-of-the-server")
    asked = {**QUESTION, "documents": [*QUESTION["documents"], {"text": "the-key-of-the-server"}]}  # type: ignore[misc]
    whole = {**QUESTION, "stream": False}
    streamed, complete = await recorded(monkeypatch, folder, Scripted([["In", " it"]]), asked, whole)
    assert (streamed["outcome"], streamed["finish_reason"], streamed["id"]) == ("answered", "stop", "../one")
    assert streamed["model"] == "scripted"
    assert streamed["model_server"].items() >= {"kind": "openvino", "framework": "native", "name": "scripted"}.items()
    assert streamed["settings"]["[Model] api_key"] == "**********"
    assert streamed["settings"]["[Logging] record"] == str(folder)
    assert streamed["request"]["value"]["sampling"].items() >= {"max_tokens": 5, "stop": ["\n\n"]}.items()
    assert [one["fate"] for one in streamed["report"]["documents"]] == ["kept"] * 3
    assert "It is in the harbour." in streamed["prompt"]["value"][-1]["content"]
    assert streamed["answer"]["value"] == "In it"
    assert streamed["usage"]["completion_tokens"] == 2
    times = streamed["times"]
    assert 0 < times["planned"] <= times["first_chunk"] == times["chunks"][0] <= times["chunks"][1] <= times["total"]
    assert (complete["times"]["chunks"], complete["answer"]["value"]) == ([], "In it")
    assert streamed["redacted"]
    file = min(folder.iterdir())
    assert "sk-abc" not in file.read_text()
    assert "the-key-of-the-server" not in file.read_text()
    assert file.parent == folder
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_without_texts_a_record_has_hashes_that_are_the_same_for_the_same_texts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = {**QUESTION, "messages": [{"role": "user", "content": "Another question"}]}
    server = Scripted([["In the harbour"]])
    one, two, three = await recorded(monkeypatch, tmp_path, server, QUESTION, QUESTION, other, texts=False)
    assert one["prompt"]["sha256"] == two["prompt"]["sha256"] != three["prompt"]["sha256"]
    assert one["answer"]["sha256"] == three["answer"]["sha256"]
    assert not any(word in str(one) for word in ("harbour", "Where", "flour", "\\n\\n"))
    assert request_in(one) is None


class Calls(Scripted):
    """A model server that calls a function in its second choice."""

    async def describe(self) -> ModelInfo:
        return ModelInfo("scripted", capabilities=frozenset({"n", "tools"}))

    async def generate(self, prompt: Prompt, sampling: Sampling, options: Mapping[str, Any], answer: Answer) -> None:
        call = {"index": 0, "id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        answer.text("first")
        answer.delta(TextDelta("", 1, {"tool_calls": [call]}))
        answer.finished(Finished("stop", None, 0))
        answer.finished(Finished("tool_calls", Usage(1, 2), 1))


async def test_a_record_has_all_choices_and_their_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    body = {"messages": [{"role": "user", "content": "?"}], "tools": tools, "n": 2}
    for record in await recorded(monkeypatch, tmp_path, Calls(), {**body, "stream": True}, body):
        first, second = record["answer"]["value"]
        assert first == {"text": "first"}
        assert (second["text"], second["tool_calls"][0]["function"]["name"]) == ("", "look")
        assert record["usage"]["completion_tokens"] == 2
        request = request_in(record)
        assert request
        assert request.options == {"tools": tools, "n": 2}


async def test_what_fails_and_what_is_cancelled_is_recorded_and_a_preview_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = Able([["On", ModelServerError("it broke")], ["Two", asyncio.Event()]], context_window=60)
    environment = {"LOG_RECORD": str(tmp_path), **OPENAI}
    short = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 3}
    async with running(server, monkeypatch, environment) as service:
        await service.post(short, "/v1/prompt")
        await service.post(short)
        await _left(service, {**short, "stream": True})
        await service.post({**short, "messages": [{"role": "user", "content": "long " * 3000}]})
        stream_test = {"model": "stream-test", "messages": [{"role": "user", "content": "[0]"}]}
        assert (await service.post(stream_test)).status == 200
    ended = [(one["outcome"], one["error"]) for one in records(tmp_path)]
    assert ended[0] == ("failed", "it broke")
    assert ended[1] == ("cancelled", "CancelledError")
    assert ended[2][0] == "failed"
    assert ended[2][1].startswith("the prompt has ")
    assert len(ended) == 3


async def _left(service: Service, body: Mapping[str, Any]) -> None:
    """Ask, and leave after the first chunk."""
    async with service.connect() as connection:
        await connection.send("POST", "/v1/chat/completions", json.dumps(body).encode())
        await connection.head()
        await connection.chunk()
    await until_in_flight(service, 0)


def test_the_oldest_records_go_when_the_folder_is_full_and_no_other_file_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("comps.recording.recorder._LOOK_AGAIN", 2)
    (tmp_path / "notes.json").write_text("x" * 2_000_000)
    keep = _keeping(monkeypatch, tmp_path)
    for number in range(6):
        draft = Draft("m", GenerationRequest((Message("user", str(number) * 300_000),)), id=str(number), began=number)
        keep(draft)
    names = sorted(file.name for file in tmp_path.glob("*.json"))
    assert "notes.json" in names
    kept = [name.split("Z-")[1][0] for name in names if name != "notes.json"]
    assert kept == [str(number) for number in range(6 - len(kept), 6)]
    assert 2 <= len(kept) <= 4


def _keeping(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """A recorder's `keep` that writes at once, with texts, into a folder of 1 MB."""
    recorder = Recorder(_settings(monkeypatch, folder))

    def keep(draft: Draft) -> None:
        recorder.keep(draft)
        recorder._pool.submit(int).result()

    return keep


def _settings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Settings:
    for name, value in {"LOG_RECORD": folder, "LOG_RECORD_MB": 1, "LOG_RECORD_PROMPTS": "true"}.items():
        monkeypatch.setenv(name, str(value))
    for name, value in {"MODEL_SERVER": "scripted", "FRAMEWORK": "native", "LLM_NAME": "m"}.items():
        monkeypatch.setenv(name, value)
    return read_settings(Path("/dev/null"))


def test_a_folder_that_cannot_be_written_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"\[Logging\] record = .*/file/x: cannot be written: Not a directory"):
        Recorder(_settings(monkeypatch, tmp_path / "file" / "x"))


async def test_that_requests_are_recorded_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(Scripted(), monkeypatch, {"LOG_RECORD": str(tmp_path)}):
        pass
    said = f"record = {tmp_path}: every request is kept there, with the hash of question and answer; 100 MB at most"
    assert [one.levelname for one in caplog.records if one.getMessage() == said] == ["WARNING"]


def test_a_request_is_the_same_after_it_was_written_and_read() -> None:
    request = GenerationRequest(
        (Message("system", "s"), Message("user", [{"type": "text", "text": "t"}], {"name": "n"})),
        (Document("d", "t", {"a": [1]}, 3, "why", 0.5),),
        template="{context}",
        sampling=Sampling(max_tokens=3, stop=("x", "y")),
        defaulted=frozenset({"top_p"}),
        options={"tools": [{"type": "function"}]},
        quoted=(Document("q"),),
    )
    assert request_in({"request": {"value": json.loads(json.dumps(_request_object(request)))}}) == request
    texts = _Texts(True, ())
    assert texts.kept("x" * MOST_TEXT).keys() == {"sha256", "bytes"}
    long = "a line\n" * 9000 + "sk-abcdefghijklmnopqrstuvwx\n" + "and more " * 9000
    assert texts.kept(long)["value"] == long.replace("sk-abcdefghijklmnopqrstuvwx", "***")
    with pytest.raises(ValueError, match="another form"):
        request_in({"request": {"value": {"prompt": 5}}})


async def replayed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answer: list[str], *arguments: str, **environment: str
) -> Ran:
    """Runs the first record again, at a model server that gives this answer."""
    answers = folder.parent / "answers.json"
    answers.write_text(json.dumps([answer]))
    known = {"MODEL_SERVER": "scripted", "LLM_MODEL_SERVER_ENDPOINT": str(answers), "LLM_NAME": "scripted"}
    (file,) = await asyncio.to_thread(lambda: list(folder.glob("*.json")))
    return await invoke("replay", str(file), *arguments, environment={**known, "FRAMEWORK": "native", **environment})


async def test_replay_shows_what_differs_in_prompt_tokens_answer_and_settings_and_both_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "records"
    await recorded(monkeypatch, folder, Scripted([["In", " the harbour"]]), QUESTION)
    same = await replayed(monkeypatch, folder, ["In", " the harbour"])
    other = await replayed(monkeypatch, folder, ["Nowhere"], LLM_TOP_DOCUMENTS="1")
    as_json = await replayed(monkeypatch, folder, ["Nowhere"], "--json")
    (file,) = folder.glob("*.json")
    record = json.loads(file.read_text())
    differs = _differs(same)
    assert {"prompt", "tokens", "answer", "finish_reason", "sampling", "outcome"}.isdisjoint(differs)
    assert "the model read *** in their places" in same.out
    assert re.search(r"^  seconds +recorded +now\n  prompt ready ", same.out, re.MULTILINE)
    assert "\nsettings differ\n" in other.out
    assert "\ntokens differ\n" in other.out
    for line in ("  first chunk ", "  end ", "  longest pause "):
        assert line in same.out
    assert other.code == 3
    assert {"prompt", "tokens", "answer", "settings", "report"} <= set(_differs(other))
    assert "  -B: Bread is made of flour.\n" in other.out
    assert "  -In the harbour\n  +Nowhere\n" in other.out
    assert "  [Model] top_documents: 0 → 1\n" in other.out
    assert "  completion_tokens: 2 → 1\n" in other.out
    told = json.loads(as_json.out)
    assert told["record"] == record
    assert told["again"]["answer"]["value"] == "Nowhere"
    assert "answer" in told["differs"]


def _differs(ran: Ran) -> list[str]:
    lines = [line for line in ran.out.splitlines() if line.startswith("differs: ")]
    return lines[0].removeprefix("differs: ").split(", ") if lines else []


async def test_replay_runs_at_another_model_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    await recorded(monkeypatch, folder, Scripted([["In", " the harbour"]]), QUESTION)
    (file,) = folder.glob("*.json")
    server = Scripted([["Here"]])
    async with running({"new": server}, monkeypatch, {"LLM_NAME": "new", **OPENAI}) as service:
        where = ("--model-server", "openai_api", "--endpoint", service.url, "--model", "new")
        done = await invoke("replay", str(file), *where, "--framework", "native")
        away = await invoke("replay", str(file), *where, "--model", "gone", "--framework", "native")
    assert done.code == 3, done
    assert f"by new (openai_api, native) at {service.url}" in done.out
    assert "answer" in _differs(done)
    assert {"model", "model_server"}.isdisjoint(_differs(done))
    for changed in ("model differs, as the flags say\n  scripted → new", "model_server differs, as the flags say"):
        assert changed in done.out
    assert "  -In the harbour\n  +Here\n" in done.out
    (prompt, sampling, _) = server.asked[0]
    assert "It is in the harbour." in str(prompt[-1].content)  # type: ignore[union-attr]
    assert (sampling.max_tokens, sampling.stop) == (5, ("\n\n",))
    assert "outcome differs\n  answered → failed: " in away.out


async def test_what_flags_of_a_replay_change_is_shown_and_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "records"
    (tmp_path / "answers.json").write_text(json.dumps([["Here"]]))
    known = {
        "MODEL_SERVER": "scripted",
        "LLM_MODEL_SERVER_ENDPOINT": str(tmp_path / "answers.json"),
        "LLM_NAME": "scripted",
        "FRAMEWORK": "native",
    }
    await recorded(monkeypatch, folder, Scripted([["Here"]]), QUESTION)
    (file,) = folder.glob("*.json")
    # The record of a run with these settings, so that nothing but the flags differs.
    first = await invoke("replay", str(file), "--json", environment=known)
    file.write_text(json.dumps(json.loads(first.out)["again"]))
    (tmp_path / "moved.json").write_text(json.dumps([["Here"]]))
    where = ("--endpoint", str(tmp_path / "moved.json"), "--model", "new")
    moved = await invoke("replay", str(file), *where, environment=known)
    as_json = await invoke("replay", str(file), *where, "--json", environment=known)
    other = await invoke("replay", str(file), *where, environment={**known, "LLM_TOP_DOCUMENTS": "1"})
    assert (moved.code, as_json.code, other.code) == (0, 0, 3), moved
    assert moved.out.endswith("\nnothing differs but times and what the flags changed\n")
    assert "\nsettings differ, as the flags say\n  [Model] model_name: scripted → new\n" in moved.out
    told = json.loads(as_json.out)
    assert (told["differs"], told["changed_by_flags"]) == ([], ["model", "model_server", "settings"])
    assert {"settings", "report"} <= set(_differs(other))
    assert "model" not in _differs(other)


async def test_replay_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    await recorded(monkeypatch, folder, Scripted(), QUESTION, texts=False)
    hashes = await replayed(monkeypatch, folder, ["x"])
    assert hashes.code == 2
    assert "answered, length, by scripted (openvino, native)" in hashes.out
    assert "it has the hash of the request alone, so that it cannot be run again" in hashes.err
    (record,) = records(folder)
    for text, said in (
        ("{", "it is not JSON"),
        ('{"format": 99}', "no record of this version"),
        ('{"format": 1}', "no complete record: id: field required"),
        (json.dumps({**record, "request": 5}), "no complete record: request: "),
        (json.dumps({**record, "times": {"chunks": []}}), "no complete record: times.planned: field required"),
        (json.dumps({**record, "prompt": {}}), "no complete record: prompt.sha256: field required"),
        (None, "cannot be read"),
    ):
        file = tmp_path / "file"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        done = await invoke("replay", str(file))
        assert (done.code, done.out) == (2, "")
        assert said in done.err
        assert done.err.count("\n") == 1
