"""Prompt templates from a folder: what a file says, what is wrong with one, and what the model gets of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from comps.app import read_settings
from comps.core.errors import SettingsError
from comps.core.prompts import DEFAULT_TEMPLATES, DOCUMENT_TEMPLATE, INSTRUCTIONS, RAG_TEMPLATES, Templates
from comps.core.types import Message
from comps.model_servers.scripted import Scripted
from comps.opening import open_models
from comps.settings import read_templates
from tests.service import running


def folder(path: Path, files: dict[str, str | bytes]) -> str:
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_without_a_folder_all_templates_are_built_in() -> None:
    assert read_templates("") == DEFAULT_TEMPLATES


def test_a_file_is_the_template_of_its_language_and_the_others_are_built_in(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "de.txt": "{context}\n\nFrage: {question}\n",
        "de.system.txt": "Antworte kurz.\n",
        "README.md": "",
        "zh.txt": "\ufeff问\r\n",
    }
    rag = {**RAG_TEMPLATES, "de": "{context}\n\nFrage: {question}", "zh": "问"}
    instructions = {"en": INSTRUCTIONS["en"], "de": "Antworte kurz."}
    assert read_templates(folder(tmp_path, files)) == Templates(rag, DOCUMENT_TEMPLATE, instructions=instructions)


def test_an_instruction_may_be_replaced_alone(tmp_path: Path) -> None:
    found = read_templates(folder(tmp_path, {"en.system.txt": "Be brief."}))
    assert found == Templates(instructions={**INSTRUCTIONS, "en": "Be brief."})


def test_of_the_line_breaks_at_a_file_s_end_one_is_none_of_the_template(tmp_path: Path) -> None:
    assert read_templates(folder(tmp_path, {"document.txt": "{text}\n\n"})) == Templates(document="{text}\n")


FAMILIES: dict[str, str | bytes] = {
    "en.txt": "{context} {question}",
    "document.txt": "- {text}",
    "gemma/en.txt": "G {context} {question}",
    "Gemma-3/en.system.txt": "Be brief.",
    "llama_3/document.txt": "{title} {text}",
}


@pytest.mark.parametrize(
    ("model_name", "rag", "document", "instruction"),
    [
        ("", "{context} {question}", "- {text}", None),
        ("Intel/neural-chat-7b-v3-3", "{context} {question}", "- {text}", None),
        ("google/gemma-2-9b-it", "G {context} {question}", "- {text}", None),
        ("/models/gemma-3-270m-q4_k_m.gguf", "{context} {question}", "- {text}", "Be brief."),
        ("meta-llama/Llama-3.2-1B-Instruct", "{context} {question}", "{title} {text}", None),
    ],
)
def test_a_folder_for_a_family_of_models_goes_before_the_rest(
    tmp_path: Path, model_name: str, rag: str, document: str, instruction: str | None
) -> None:
    found = read_templates(folder(tmp_path, FAMILIES), model_name)
    assert (found.rag["en"], found.document, found.instructions.get("en")) == (rag, document, instruction)


async def test_the_model_s_name_chooses_its_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Scripted()
    own = folder(tmp_path, {"gemma/en.txt": "G {context} {question}", "phi/en.txt": "P {context} {question}"})
    environment = {"LLM_NAME": "google/gemma-3-4b-it", "LLM_PROMPT_TEMPLATES": own}
    async with running(server, monkeypatch, environment) as service:
        await service.post({"query": "Who?", "documents": ["x"], "stream": False})
    assert server.asked[0][0] == (Message("user", "G x Who?"),)


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        ({"gemma/README.md": "x"}, "has no .txt file"),
        (
            {"gemma/document.txt": "x"},
            "gemma/document.txt: it has no {text}, so that no document would reach the model",
        ),
        ({"gemma/de.system.txt": "x"}, "gemma/de.system.txt: there is no de.txt"),
        ({}, "has no .txt file"),
        ({"document.txt": "{title}"}, "document.txt: it has no {text}, so that no document would reach the model"),
        ({"en.txt": b"\xff"}, "en.txt: cannot be read: it is not UTF-8 text"),
        ({"de.system.txt": "x"}, "de.system.txt: there is no de.txt"),
        ({"en.txt": "{context} {qestion}"}, "en.txt: {qestion} is no placeholder; did you mean {question}?"),
        ({"auto.txt": "x"}, "auto.txt: no language can be called auto, which chooses one by the documents"),
    ],
)
def test_what_is_wrong_with_a_folder_names_the_file(files: dict[str, str | bytes], wrong: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read_templates(folder(tmp_path, files))
    assert str(caught.value) == f"prompt_templates = {tmp_path}: {wrong}"


def test_a_folder_or_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"prompt_templates = .*/none: cannot be read: No such file or directory"):
        read_templates(str(tmp_path / "none"))
    (tmp_path / "en.txt").mkdir()
    with pytest.raises(SettingsError, match=r"en\.txt: cannot be read: Is a directory"):
        read_templates(str(tmp_path))


def test_what_is_wrong_is_told_with_its_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLM_PROMPT_TEMPLATES", str(tmp_path))
    with pytest.raises(SettingsError, match=r"^\[Model\] prompt_templates = .*: has no \.txt file"):
        open_models(read_settings(None))


@pytest.mark.parametrize("window", [None, 3550])
async def test_the_model_gets_what_the_folder_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, window: int | None
) -> None:
    document = "[{number}] {title}\nSource: {url}\n{text}\n"
    own = folder(
        tmp_path, {"document.txt": document, "de.txt": "Antworte [kurz]: [INST]\n{context}\nFrage: {question}\n"}
    )
    server = Scripted(context_window=window)
    documents = [{"text": "one <|im_end|>", "title": "I", "metadata": {"url": "u:<s>"}}, "two"]
    body = {"query": "Who?", "documents": documents, "stream": False, "max_tokens": 3500}
    async with running(server, monkeypatch, {"LLM_PROMPT_TEMPLATES": own}) as service:
        german = await service.post({**body, "language": "de"})
        built_in = await service.post(body)
        body_s_own = await service.post({**body, "language": "de", "chat_template": "{question} {context}"})
        unknown = await service.post({"query": "Who?", "language": "tlh"})
    assert [answer.status for answer in (german, built_in, body_s_own, unknown)] == [200, 200, 200, 400]
    assert unknown.json["detail"] == "language: there is no prompt template for 'tlh'; known: auto, de, en, zh"
    context = "[1] I\nSource: u:< s>\none < |im_end|>\n\n[2] two"
    expected = [f"Antworte [kurz]: [ INST]\n{context}\nFrage: Who?", RAG_TEMPLATES["en"], f"Who? {context}"]
    expected[1] = expected[1].replace("{context}", context).replace("{question}", "Who?")
    assert [prompt[-1] for prompt, _, _ in server.asked] == [Message("user", text) for text in expected]
    instruction = Message("system", INSTRUCTIONS["en"])
    assert [prompt[:-1] for prompt, _, _ in server.asked] == [(), (instruction,), ()]
