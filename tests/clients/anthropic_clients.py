"""What Anthropic's SDK and ChatAnthropic make of the service's answers, as JSON: run with the service's URL.

And with the example of the documentation.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from typing import Any

import anthropic
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

URL, KEY = sys.argv[1], "s3cret"
sdk = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
ASKED: Any = {"model": "scripted", "max_tokens": 50}
TOOL: Any = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
DOCUMENT: Any = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "Of colours. The grass is green."},
    "title": "Colours",
    "citations": {"enabled": True},
}
CITING: Any = [DOCUMENT, {"type": "text", "text": "Which colour has grass?"}]


def user(content: Any) -> Any:
    return [{"role": "user", "content": content}]


def blocks(message: Any) -> Any:
    return [block.to_dict() for block in message.content]


def whole() -> Any:
    message = sdk.messages.create(**ASKED, system="Be brief.", messages=user("Hello"))
    usage = message.usage.to_dict()
    return [message.type, message.role, blocks(message), message.stop_reason, usage, len(message._request_id or "")]


def stopped() -> Any:
    message = sdk.messages.create(**ASKED, messages=user("Hello"), stop_sequences=[" is"])
    return [blocks(message), message.stop_reason, message.stop_sequence]


def streamed() -> Any:
    with sdk.messages.stream(**ASKED, messages=user("Hello")) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    return [texts, blocks(final), final.stop_reason, final.usage.output_tokens, len(stream.request_id or "")]


def thought() -> Any:
    with sdk.messages.stream(**ASKED, messages=user("think")) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    return [blocks(final), "thinking" in kinds, blocks(sdk.messages.create(**ASKED, messages=user("think")))]


def tools() -> Any:
    asked = {**ASKED, "tools": [TOOL], "tool_choice": {"type": "any"}}
    message = sdk.messages.create(**asked, messages=user("Paris?"))
    with sdk.messages.stream(**asked, messages=user("Paris?")) as stream:
        final = stream.get_final_message()
    (use,) = final.content
    result = [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]
    turns = [*user("Paris?"), final.to_param(), *user(result)]
    told = sdk.messages.create(**ASKED, tools=[TOOL], messages=turns)
    return [message.stop_reason, blocks(message), blocks(final), blocks(told), told.stop_reason]


def citations() -> Any:
    with sdk.messages.stream(**ASKED, messages=user(CITING)) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    return [blocks(sdk.messages.create(**ASKED, messages=user(CITING))), blocks(final), kinds.count("citation")]


def error(ask: Any) -> Any:
    try:
        ask()
    except anthropic.APIStatusError as failed:
        return [type(failed).__name__, failed.status_code, failed.type, failed.api_message, bool(failed.request_id)]
    return None


def broken() -> None:
    with sdk.messages.stream(**ASKED, messages=user("break")) as stream:
        stream.until_done()


def errors() -> Any:
    other = anthropic.Anthropic(base_url=URL, api_key="no", max_retries=0)
    return {
        "model": error(lambda: sdk.messages.create(model="other", max_tokens=5, messages=user("?"))),
        "body": error(lambda: sdk.messages.create(**ASKED, messages=user("?"), tools=[{"type": "bash_20250124"}])),
        "key": error(lambda: other.messages.create(**ASKED, messages=user("?"))),
        "server": error(lambda: sdk.messages.create(**ASKED, messages=user("break"))),
        "stream": error(broken),
        "unknown": error(lambda: sdk.models.retrieve("other")),
        "no_key": error(lambda: other.models.list()),
    }


def counted() -> Any:
    count = sdk.messages.count_tokens(model="scripted", messages=user("Hello"), tools=[TOOL])
    return [count.input_tokens > 50, sdk.beta.messages.count_tokens(model="scripted", messages=user("x")).input_tokens]


def models() -> Any:
    listed = [model.id for model in sdk.models.list(limit=1)]
    found = sdk.models.retrieve("scripted")
    return [listed, found.id, found.display_name, found.created_at.year, found.max_input_tokens]


def langchain() -> Any:
    model = ChatAnthropic(model="scripted", base_url=URL, api_key=KEY, max_retries=0, max_tokens=50, temperature=0)
    message = model.invoke("Hello")
    chunks = list(model.stream("Hello"))
    caller = model.bind_tools([TOOL], tool_choice="any")
    call = caller.invoke("Paris?")
    gathered: Any = None
    for chunk in caller.stream("Paris?"):
        gathered = chunk if gathered is None else gathered + chunk
    assert isinstance(call, AIMessage)
    result = ToolMessage("rain", tool_call_id=call.tool_calls[0]["id"])
    told = model.bind_tools([TOOL]).invoke([HumanMessage("Paris?"), call, result])
    cited: Any = None
    for chunk in model.stream([HumanMessage(CITING)]):
        cited = chunk if cited is None else cited + chunk
    return {
        "whole": [message.text, message.usage_metadata, message.response_metadata["stop_reason"]],
        "streamed": ["".join(chunk.text for chunk in chunks), len([chunk for chunk in chunks if chunk.text])],
        "calls": [[(one["name"], one["args"]) for one in said.tool_calls] for said in (call, gathered)],
        "told": told.text,
        "citations": [model.invoke([HumanMessage(CITING)]).content, cited.content],
        "error": error(lambda: model.invoke("break")),
        "tokens": model.get_num_tokens_from_messages([HumanMessage("x")]),
    }


def documented() -> Any:
    with redirect_stdout(io.StringIO()) as printed:
        exec(sys.argv[2], {})
    return printed.getvalue()


if __name__ == "__main__":
    asked = (whole, stopped, streamed, thought, tools, citations, errors, counted, models, langchain, documented)
    print(json.dumps({ask.__name__: ask() for ask in asked}))
