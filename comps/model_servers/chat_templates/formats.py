"""The built-in chat templates, one for each family of models.

Each renders what the models' published template renders; the golden files in tests/model_servers/chat_templates check
this. Llama 3.1's date is the constant of its published template. None has tools.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    r"""One chat template.

    Attributes:
        models: A regular expression for the models' names in lower case, without their owner.
        jinja: The template, with Hugging Face's variables.
        bos: The beginning-of-sequence token.
        eos: The end-of-sequence token.
        stops: Stop strings: what an answer ends before.
        markers: What opens or closes a turn, beside special tokens. One that begins with `\n` counts only at the start
            of a line.
    """

    models: str
    jinja: str
    bos: str = ""
    eos: str = ""
    stops: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()


_TURNS = r"""
{%- if messages[0].role == 'system' -%}
    {%- set system, turns = messages[0].content, messages[1:] -%}
{%- else -%}
    {%- set system, turns = none, messages -%}
{%- endif -%}
{%- if not turns -%}
    {{- raise_exception('there is no turn of the user') -}}
{%- endif -%}
{%- for turn in turns -%}
    {%- if turn.role != ['user', 'assistant'][loop.index0 % 2] -%}
        {{- raise_exception('after the system message, turns of user and assistant must alternate') -}}
    {%- endif -%}
{%- endfor -%}
"""
"""For templates whose turns alternate. It sets `system` (none without a system message) and `turns`."""

_CHATML = r"""
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


def _chatml_of(system: str) -> str:
    """ChatML with a default system message."""
    default = "'<|im_start|>system\\n" + system + "<|im_end|>\\n'"
    return "{%- if messages[0].role != 'system' -%}{{- " + default + " -}}{%- endif -%}" + _CHATML


_CHATML_STOPS = ("<|im_end|>", "<|endoftext|>")

_INST = ("[INST]", "[/INST]")
_SYS = ("<<SYS>>", "<</SYS>>")
_MISTRAL = (
    *_INST,
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)


def _mistral(answer: str, opening: str, closing: str, system_turn: str) -> str:
    """The template of a generation of Mistral's models.

    Args:
        answer: What is written of an assistant's turn, before EOS.
        opening: What stands before a user's turn.
        closing: What stands behind it.
        system_turn: The user's turn that the system message stands in: `first` or `last`.
    """
    return (
        _TURNS
        + r"""
{{- bos_token -}}
{%- for turn in turns -%}
    {%- if turn.role == 'assistant' -%}
        {{- ANSWER ~ eos_token -}}
    {%- else -%}
        {%- set before = system ~ '\n\n' if loop.SYSTEM_TURN and system is not none else '' -%}
        {{- 'OPENING' ~ before ~ turn.content ~ 'CLOSING' -}}
    {%- endif -%}
{%- endfor -%}
""".replace("ANSWER", answer)
        .replace("OPENING", opening)
        .replace("CLOSING", closing)
        .replace("SYSTEM_TURN", system_turn)
    )


_LLAMA_3_TURNS = r"""
{%- for message in messages -%}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ message.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""

FORMATS: dict[str, Format] = {
    "chatml": Format(
        models=r"chatml|open-?hermes|(nous-)?hermes-[234]|dolphin",
        jinja=_CHATML,
        stops=_CHATML_STOPS,
    ),
    "dolly": Format(
        models=r"dolly-v2",
        jinja=_TURNS
        + r"""
{%- set task = 'Below is an instruction that describes a task.' -%}
{%- set wish = 'Write a response that appropriately completes the request.' -%}
{{- (task ~ ' ' ~ wish if system is none else system) ~ '\n\n' -}}
{%- for turn in turns -%}
    {%- if turn.role == 'user' -%}
        {{- '### Instruction:\n' ~ turn.content ~ '\n\n' -}}
    {%- else -%}
        {{- '### Response:\n' ~ turn.content ~ '\n\n### End' ~ ('' if loop.last else '\n\n') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Response:\n' -}}
{%- endif -%}
""",
        eos="<|endoftext|>",
        stops=("### End", "<|endoftext|>"),
        markers=("### Instruction:", "### Response:", "### End"),
    ),
    "falcon": Format(
        models=r"falcon-(?!.*chat)",
        jinja=_TURNS
        + r"""
{{- (system or '') | trim -}}
{%- for turn in turns -%}
    {%- set content = (turn.content | trim).replace('\n\n', '\n') -%}
    {{- '\n\n' ~ turn.role | capitalize ~ ': ' ~ content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '\n\nAssistant:' -}}
{%- endif -%}
""",
        eos="<|endoftext|>",
        stops=("\nUser:", "<|endoftext|>"),
        markers=("\nUser:", "\nAssistant:"),
    ),
    "falcon-chat": Format(
        models=r"falcon-.*chat",
        jinja=_TURNS
        + r"""
{%- if system is not none -%}
    {{- 'System: ' ~ system ~ '\n' -}}
{%- endif -%}
{%- for turn in turns -%}
    {{- {'user': 'User: ', 'assistant': 'Falcon: '}[turn.role] ~ turn.content ~ '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Falcon:' -}}
{%- endif -%}
""",
        eos="<|endoftext|>",
        stops=("\nUser:", "<|endoftext|>"),
        markers=("\nSystem:", "\nUser:", "\nFalcon:"),
    ),
    "falcon3": Format(
        models=r"falcon-?3",
        jinja=r"""
{%- for message in messages -%}
    {{- '<|' ~ message.role ~ '|>\n' ~ message.content -}}
    {%- if message.role == 'assistant' -%}
        {{- eos_token -}}
    {%- endif -%}
    {%- if message.role != 'assistant' or not loop.last -%}
        {{- '\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\n' -}}
{%- endif -%}
""",
        eos="<|endoftext|>",
        stops=("<|endoftext|>", "<|user|>"),
    ),
    "gemma": Format(
        models=r"gemma-(?!4)",
        jinja=_TURNS
        + r"""
{{- bos_token -}}
{%- for turn in turns -%}
    {{- '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else 'user') ~ '\n' -}}
    {%- if loop.first and system is not none -%}
        {{- system ~ '\n\n' -}}
    {%- endif -%}
    {{- turn.content | trim ~ '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\n' -}}
{%- endif -%}
""",
        bos="<bos>",
        eos="<eos>",
        stops=("<end_of_turn>", "<eos>"),
        markers=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
    ),
    "llama-2": Format(
        models=r"llama-?2",
        jinja=_TURNS
        + r"""
{%- for turn in turns -%}
    {%- if turn.role == 'assistant' -%}
        {{- ' ' ~ turn.content | trim ~ ' ' ~ eos_token -}}
    {%- else -%}
        {%- set before = '' if system is none or not loop.first else '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' -%}
        {{- bos_token ~ '[INST] ' ~ (before ~ turn.content) | trim ~ ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
""",
        bos="<s>",
        eos="</s>",
        stops=("</s>",),
        markers=(*_INST, *_SYS),
    ),
    "llama-3": Format(
        models=r"(meta-)?llama-?3(?!\.)",
        jinja="{{- bos_token -}}" + _LLAMA_3_TURNS,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        stops=("<|eot_id|>", "<|end_of_text|>"),
    ),
    "llama-3.1": Format(
        models=r"(meta-)?llama-?3\.[123]",
        jinja=r"""
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' -%}
{%- set messages = messages[1:] if messages[0].role == 'system' else messages -%}
{{- bos_token ~ '<|start_header_id|>system<|end_header_id|>\n\n' -}}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' ~ system ~ '<|eot_id|>' -}}
"""
        + _LLAMA_3_TURNS,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        stops=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    ),
    "mistral-nemo": Format(
        models=r"mistral-nemo",
        jinja=_mistral("turn.content", "[INST]", "[/INST]", "last"),
        bos="<s>",
        eos="</s>",
        stops=("</s>",),
        markers=_MISTRAL,
    ),
    "mistral-v1": Format(
        models=r"mistral-7b-instruct(-v0\.[12])?(?!-v)|mixtral-8x7b",
        jinja=_mistral("' ' ~ turn.content", " [INST] ", " [/INST]", "first"),
        bos="<s>",
        eos="</s>",
        stops=("</s>",),
        markers=_MISTRAL,
    ),
    "mistral-v3": Format(
        models=r"mistral-7b-instruct-v0\.3|mixtral-8x22b",
        jinja=_mistral("' ' ~ turn.content | trim", "[INST] ", "[/INST]", "last"),
        bos="<s>",
        eos="</s>",
        stops=("</s>",),
        markers=_MISTRAL,
    ),
    "neural-chat": Format(
        models=r"neural-chat",
        jinja=_TURNS
        + r"""
{%- if system is not none -%}
    {{- '### System:\n' ~ system ~ '\n' -}}
{%- endif -%}
{%- for turn in turns -%}
    {%- if turn.role == 'assistant' -%}
        {{- '### Assistant:\n' ~ turn.content ~ eos_token ~ '\n' -}}
    {%- else -%}
        {{- '### User:\n' ~ turn.content ~ ' \n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Assistant:\n' -}}
{%- endif -%}
""",
        bos="<s>",
        eos="</s>",
        stops=("</s>", "### User:"),
        markers=("### System:", "### User:", "### Assistant:"),
    ),
    "phi-3": Format(
        models=r"phi-3(?!.*vision)",
        jinja=r"""
{%- for message in messages -%}
    {{- '<|' ~ message.role ~ '|>\n' ~ message.content ~ '<|end|>\n' -}}
{%- endfor -%}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token -}}
""",
        bos="<s>",
        eos="<|endoftext|>",
        stops=("<|end|>", "<|endoftext|>"),
    ),
    "qwen": Format(
        models=r"qwen(1\.5|2(?!\.|-vl)|-\d)",
        jinja=_chatml_of("You are a helpful assistant."),
        eos="<|im_end|>",
        stops=_CHATML_STOPS,
    ),
    "qwen2.5": Format(
        models=r"qwen2\.5-(?!vl|omni|math)",
        jinja=_chatml_of("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        eos="<|im_end|>",
        stops=_CHATML_STOPS,
    ),
    "qwen3": Format(
        models=r"qwen3-(?!vl|omni)",
        # The model's thinking before earlier answers is left out.
        jinja=_CHATML.replace(
            "message.content",
            r"(message.content.split('</think>')[-1].lstrip('\n') if message.role == 'assistant' and "
            "'</think>' in message.content else message.content)",
        ),
        eos="<|im_end|>",
        stops=_CHATML_STOPS,
    ),
    "vicuna": Format(
        models=r"vicuna-(?!.*v0)",
        jinja=_TURNS
        + r"""
{%- set who = 'A chat between a curious user and an artificial intelligence assistant.' -%}
{%- set how = "The assistant gives helpful, detailed, and polite answers to the user's questions." -%}
{{- (who ~ ' ' ~ how if system is none else system) ~ ' ' -}}
{%- for turn in turns -%}
    {%- if turn.role == 'assistant' -%}
        {{- 'ASSISTANT: ' ~ turn.content ~ eos_token -}}
    {%- else -%}
        {{- 'USER: ' ~ turn.content ~ ' ' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT:' -}}
{%- endif -%}
""",
        bos="<s>",
        eos="</s>",
        stops=("</s>", "USER:"),
        markers=("USER:", "ASSISTANT:"),
    ),
}
"""By their names in the setting `chat_template`."""
