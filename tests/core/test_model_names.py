"""What the name of a model says about it."""

from __future__ import annotations

import pytest

from comps.core.model_names import has_chat_template

TEMPLATED = (
    "SmolLM2-135M-Instruct",
    "meta-llama/Llama-2-7b-chat-hf",
    "TheBloke/Llama-2-7B-Chat-GGUF/llama-2-7b-chat.Q4_K_M.gguf",
    "/cache/hub/models--meta-llama--Llama-2-7b-chat-hf/snapshots/f5db02db724555f92da89c216ac04704f23d4590",
    "C:\\models\\Llama_2_7b_chat.Q8_0.gguf",
    "mistralai/Mistral-7B-Instruct-v0.2",
    "Intel/neural-chat-7b-v3-3",
    "Qwen/Qwen3-8B",
    "google/gemma-2-9b-it",
    "microsoft/Phi-3-mini-4k-instruct",
    "teknium/OpenHermes-2.5-Mistral-7B",
    "HuggingFaceH4/zephyr-7b-beta",
    "gpt-4o-mini",
    "o3-mini",
    "openai/gpt-oss-20b",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
)
UNTEMPLATED = (
    "gpt2",
    "facebook/opt-125m",
    "EleutherAI/pythia-70m",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-3.1-8B",
    "mistralai/Mistral-7B-v0.1",
    "Qwen/Qwen3-8B-Base",
    "google/gemma-3-4b-pt",
    "tiiuae/falcon-7b",
    "HuggingFaceTB/SmolLM2-135M",
    "lmsys/vicuna-7b-v1.5",
    "TheBloke/vicuna-13B-v1.5-GGUF",
    "databricks/dolly-v2-3b",
)
SILENT = ("", "tgi", "scripted", "default", "/models/chat/model.bin", "My-Finetune-7B", "opening-day", "edit-7b")


@pytest.mark.parametrize("name", TEMPLATED)
def test_models_for_conversations_are_known_by_their_names(name: str) -> None:
    assert has_chat_template(name) is True


@pytest.mark.parametrize("name", UNTEMPLATED)
def test_models_that_were_published_without_a_chat_template_are_known_by_their_names(name: str) -> None:
    assert has_chat_template(name) is False


@pytest.mark.parametrize("name", SILENT)
def test_of_any_other_name_nothing_is_concluded(name: str) -> None:
    assert has_chat_template(name) is None
