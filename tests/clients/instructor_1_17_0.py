"""What instructor makes of the service's answers, as JSON: run with the service's URL, in an environment of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

import instructor
import openai
from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=10)
    age: int


MESSAGES: Any = [{"role": "user", "content": 'Repeat this JSON: {"name": "Jason", "age": 25}'}]

sdk = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
MODEL = sdk.models.list().data[0].id


def made(mode: instructor.Mode) -> Any:
    client = instructor.from_openai(sdk, mode=mode)
    person = client.create(
        model=MODEL, messages=MESSAGES, response_model=Person, max_retries=0, temperature=0, max_tokens=80
    )
    return person.model_dump()


print(json.dumps({mode.name: made(mode) for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA)}))
