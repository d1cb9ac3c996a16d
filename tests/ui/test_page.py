"""The page in headless Chromium, before the real service: `make page-test`.

`PAGE_SCREENSHOTS` is a folder for pictures of it.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process import Running, serving
from tests.test_document_files import pdf

pytestmark = pytest.mark.live

CHROMIUM = shutil.which("chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
"""Chromium asks nothing of the network by itself."""
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script> Paris is in France."
DOCUMENTS = {
    "gaudi.txt": "Intel Gaudi 2 has 96 GB of HBM2E memory on board. It was announced in 2022.",
    "bread.md": "Bread is made of flour, water and salt.",
    "hostile.txt": HOSTILE,
}
QUESTION = "How much memory does Gaudi 2 have?"
ANSWER = ["Gaudi 2 has", " 96 GB of HBM2E memory", " on board."]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; make page-test does it")
    if not CHROMIUM:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    answers = tmp_path_factory.mktemp("page") / "answers.json"
    answers.write_text(json.dumps([ANSWER]), "utf-8")
    with serving(MODEL_SERVER="scripted", LLM_MODEL_SERVER_ENDPOINT=str(answers), LLM_NAME="scripted") as running:
        yield running


def opened(browser: Any, service: Running, **context: Any) -> Any:
    """The page; what goes wrong in it fails the test, but for refusals."""
    page = browser.new_context(**context).new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(f"http://127.0.0.1:{service.port}/ui")
    page.wait_for_selector("#model option", state="attached")
    return page


def add(page: Any, documents: dict[str, str]) -> None:
    for number, (name, text) in enumerate(documents.items(), 1):
        page.set_input_files("#files", [{"name": name, "mimeType": "text/plain", "buffer": text.encode()}])
        page.wait_for_selector(f"#document-{number}")


def ask(page: Any, question: str = QUESTION) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def done(page: Any, turn: int = 1) -> None:
    page.wait_for_selector(f".turn:nth-of-type({turn}):not(.running)")


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder, f"{name}.png")))


@pytest.mark.parametrize("dialect", ["openai", "opea"])
def test_it_streams_an_answer_whose_citations_lead_to_their_documents(
    browser: Any, service: Running, dialect: str
) -> None:
    page = opened(browser, service, viewport={"width": 1280, "height": 800})
    add(page, DOCUMENTS)
    page.click("#tab-settings")
    page.select_option("#dialect", dialect)
    page.click("#tab-documents")
    ask(page)
    done(page)
    assert page.inner_text(".answer").startswith("Gaudi 2 has 96 GB of HBM2E memory on board.")
    assert "first token after" in page.inner_text(".told")
    assert page.locator("#list .fate.kept").count() == 3
    picture(page, f"page-{dialect}")
    page.click(".cite")
    assert page.evaluate("document.activeElement.id") == "document-1"
    assert page.title() == "opea_service@llm"
    page.click("#tab-prompt")
    page.wait_for_selector(".message")
    assert DOCUMENTS["gaudi.txt"] in page.inner_text("#messages")
    picture(page, f"prompt-{dialect}")
    page.click("#tab-code")
    for language, part in {"curl": "curl -N http://127.0.0.1", "Python": "import", "LangChain": "ChatOpenAI("}.items():
        page.click(f"#languages >> text={language}")
        assert part in page.inner_text("#source")
        assert QUESTION in page.inner_text("#source")


def test_a_long_document_is_marked_as_cut_with_the_reason(browser: Any, tmp_path: Path) -> None:
    with serving(MODEL_SERVER="scripted", LLM_NAME="scripted", LLM_CONTEXT_WINDOW="600") as running:
        page = opened(browser, running)
        add(page, {"long.txt": "Herring is sold on Fridays. " * 2000, "more.txt": "The bridge was opened in 1931."})
        ask(page)
        done(page)
        assert page.locator("#document-1 .fate.cut").count() == 1
        assert "does not fit" in page.inner_text("#document-1")


def test_an_answer_can_be_stopped_and_a_reload_forgets_it_all(browser: Any, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([["word "] * 1_000_000]), "utf-8")
    with serving(MODEL_SERVER="scripted", LLM_MODEL_SERVER_ENDPOINT=str(answers), LLM_NAME="scripted") as running:
        page = opened(browser, running)
        page.click("#tab-settings")
        page.fill("#key", "secret")
        page.fill("#max_tokens", "1000000")
        ask(page)
        page.wait_for_selector(".running .told:has-text('tokens')")
        page.click("#stop")
        done(page)
        assert "stopped" in page.inner_text(".told")
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        assert page.locator(".turn").count() == 0
        assert page.input_value("#key") == ""


def test_a_refusal_is_shown_with_its_field(browser: Any, service: Running) -> None:
    page = opened(browser, service)
    page.click("#tab-settings")
    page.fill("#top_p", "7")
    ask(page)
    page.wait_for_selector(".error")
    assert "top_p" in page.inner_text(".error")
    picture(page, "error")


def test_a_pdf_is_read_and_a_broken_one_says_why(browser: Any, service: Running) -> None:
    page = opened(browser, service)
    page.set_input_files("#files", [{"name": "a.pdf", "mimeType": "application/pdf", "buffer": pdf("Gaudi 2")}])
    page.wait_for_selector("#document-1")
    assert page.inner_text("#document-1 .text") == "Gaudi 2"
    page.set_input_files("#files", [{"name": "b.pdf", "mimeType": "application/pdf", "buffer": b"x"}])
    page.wait_for_selector("#reading:has-text('cannot be read')")


def test_it_fits_a_phone_in_the_dark_and_works_by_keyboard(browser: Any, service: Running) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    page = opened(browser, service, **phone)
    add(page, DOCUMENTS)
    ask(page)
    done(page)
    picture(page, "phone-dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
    page.focus("#tab-documents")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-prompt", "aria-selected") == "true"
    assert page.evaluate("document.activeElement.id") == "tab-prompt"
    unnamed = (
        "[...document.querySelectorAll('input:not([hidden]),textarea,select')].filter(one => !one.labels.length).length"
    )
    assert page.evaluate(unnamed) == 0
