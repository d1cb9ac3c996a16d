"""What fields of bodies and answers mean, for the OpenAPI document, where a body says nothing of its own about them."""

from __future__ import annotations

from collections.abc import Mapping

_PASSED = "As OpenAI has it; for model servers that know it."
_NOT_HERE = "As transformers has it; no effect here, and named as ignored."

FIELDS: Mapping[str, str] = {
    # Questions and documents.
    "query": "The question.",
    "initial_query": "The question.",
    "prompt": "The text.",
    "prompts": "The texts, each with an answer of its own.",
    "messages": "The messages, the question last.",
    "role": "Who says it: system, user, assistant …",
    "content": "What is said.",
    "text": "The text.",
    "title": "The document's title.",
    "metadata": "Further facts, such as `url`, `score` and `citation_id`.",
    "MessagesCall.metadata": _PASSED,
    "reranked_docs": "Documents, the best first; they take the place of retrieved ones.",
    "input_data": "The dialogs.",
    "input_string": "The dialogs, each a list of messages.",
    "parameters": "The sampling parameters.",
    "model": "The served model's name, where several are served.",
    # Sampling.
    "temperature": "0 is greedy.",
    "top_p": "Sample from the likeliest tokens that have this probability together.",
    "typical_p": "Sample from the most typical tokens that have this probability together.",
    "repetition_penalty": "Above 1: tokens that are there already become less likely.",
    "repeat_penalty": "An older name of repetition_penalty.",
    "frequency_penalty": "Above 0: the more often a token is there, the less likely it becomes.",
    "presence_penalty": "Above 0: tokens that are there already become less likely.",
    "seed": "The same seed repeats the answer, as far as the model server can.",
    "min_new_tokens": "The least tokens of the answer.",
    # Streams.
    "stream": "Whether the answer is streamed.",
    "stream_options": "`include_usage`: the stream ends with the numbers of tokens.",
    # OpenAI's options.
    "tools": "Functions that the model may call.",
    "tool_choice": "none, auto, required, or the function to call.",
    "parallel_tool_calls": _PASSED,
    "logprobs": "Whether the answer has the log probabilities of its tokens.",
    "echo": "Whether the answer begins with the prompt.",
    "suffix": "The text behind what is to be filled in.",
    "user": "The end user's id; for model servers that know it.",
    **dict.fromkeys(
        (
            *("reasoning_effort", "verbosity", "modalities", "audio", "prediction", "web_search_options"),
            *("moderation", "store", "service_tier", "safety_identifier"),
            *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
        ),
        _PASSED,
    ),
    # Transformers' options.
    **dict.fromkeys(
        (
            *("min_length", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "length_penalty"),
            *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "output_scores"),
            *("return_dict_in_generate", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id"),
            "remove_invalid_values",
        ),
        _NOT_HERE,
    ),
    "pad_token_id": "It changes no text.",
}
"""Descriptions by the field's name, or by the schema's and the field's (`MessagesCall.metadata`)."""

FIELDS_OF_ANSWERS: Mapping[str, str] = {
    "id": "The answer's id.",
    "object": "The kind of this object.",
    "created": "When the answer was made, in seconds since 1970 (UTC).",
    "model": "The model that answered.",
    "text": "The text of the answer.",
    "prompt": "The question or the prompt, as the body has it.",
    "choices": "The answers.",
    "index": "The position in the list, from 0.",
    "message": "The answer as a message.",
    "role": "Who says it: system, user, assistant …",
    "content": "What is said.",
    "logprobs": "The log probabilities of the tokens, if the body asks for them.",
    "finish_reason": "Why the answer ended: `stop` (by itself), `length` (cut), `tool_calls` …",
    "usage": "The numbers of tokens, as the model server counted them.",
    "prompt_tokens": "The tokens of the prompt.",
    "completion_tokens": "The tokens of the answer.",
    "total_tokens": "Both together.",
    "data": "The vectors, one for each text.",
    "embedding": "The vector: a list of numbers, or base64 of 32-bit floats.",
    "count": "The number of tokens.",
    "error_code": "0: there is no error.",
    "results": "The answers, one for each prompt or dialog.",
    "response": "The answer to the prompt.",
    "Result": "The answer.",
    # Of OpenAI's Responses API.
    "status": "`completed`, or `incomplete` if it was cut.",
    "incomplete_details": "Why it was cut.",
    "error": "What failed; in streams alone.",
    "output": "The items of the answer: messages, calls of functions, reasoning.",
    "type": "What it is.",
    "annotations": "What the text cites.",
    "store": "Whether it is kept here.",
    "input_tokens": "The tokens of the prompt.",
    "output_tokens": "The tokens of the answer.",
    **dict.fromkeys(("input_tokens_details", "output_tokens_details"), "Which they are, as far as it is known."),
    "cached_tokens": "Those that the model server had read before.",
    "cache_write_tokens": "Those that it has kept.",
    "reasoning_tokens": "Those of the reasoning.",
    "ResponsesCallAnswer.created_at": "When the answer was made, in seconds since 1970 (UTC).",
    **{
        f"ResponsesCallAnswer.{name}": "As the body has it, or what holds without it."
        for name in (
            *("background", "instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "user"),
            *("previous_response_id", "reasoning", "reasoning.effort", "reasoning.summary", "temperature", "text"),
            *("text.format", "tool_choice", "tools", "tools.name", "tools.description", "tools.parameters"),
            *("tools.strict", "top_logprobs", "top_p", "truncation"),
        )
    },
    # Ollama's.
    "created_at": "When the answer was begun.",
    "done": "Whether the answer is complete.",
    "done_reason": "Why it ended: `stop`, `length` (cut), `load` …",
    "total_duration": "The time from the request to the end of the answer, in nanoseconds.",
    "load_duration": "The time until the model was asked, in nanoseconds.",
    "eval_duration": "The time in which the model answered, in nanoseconds.",
    "prompt_eval_count": "The tokens of the prompt.",
    "eval_count": "The tokens of the answer.",
    "embeddings": "The vectors, one for each text.",
    "modelfile": "The model's name, as a Modelfile has it.",
    "model_info": "The facts of the model.",
    "general.architecture": "Its family.",
    "general.basename": "Its name.",
    "unknown.context_length": "The tokens of prompt and answer together.",
    "capabilities": "What it can do: completion, tools, insert.",
    **dict.fromkeys(("parameters", "template", "details"), "Not known here."),
    **dict.fromkeys(("parent_model", "format", "family", "families"), "Not known here."),
    **dict.fromkeys(("parameter_size", "quantization_level"), "Not known here."),
}
"""Descriptions by the field's name, at any depth of a whole answer, or by the answer's name and the path of the field
(`ResponsesCallAnswer.text.format`)."""
