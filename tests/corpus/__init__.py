"""What clients and model servers really send: a file for each case, with its source and the right outcome.

`upstream/` has what model servers send. Fields: `source`; `server` (the kind of model server, `vllm` if left out);
`stream` (an answer as server-sent events) and `whole` (one as JSON); `status` and `headers` of the response; `routes`
(replies of other paths, as `[status, document]`); and `outcome`: `pieces` (texts in the answer, in their order),
`text`, `reason`, `usage` (`[prompt, completion]`), `reasoning` and `arguments` (of the first tool call) in OpenAI's
words, or `error` with `status`, `code`, `says` and `retry_after`.

`requests/` has what clients send. Fields: `source`; `server` (as above); `method` (POST if left out), `path` (that of
chats if left out), `headers` and `body` (JSON) of the request; `encode` (how the body is compressed); `settings`
(environment variables); and `outcome`: `status`, `says` (a text in the answer), `keys` (of its object), `headers`,
`ignored` (`x-ignored-params`), `log` (a text in the log), and what reaches the model server: `prompt` (roles and
contents of the messages, or a text), `upstream` (fields of the body), `upstream_headers` and `upstream_has` (a text).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    said: dict[str, Any]

    def __getitem__(self, field: str) -> Any:
        return self.said[field]

    def get(self, field: str, otherwise: Any = None) -> Any:
        return self.said.get(field, otherwise)

    @property
    def outcome(self) -> dict[str, Any]:
        outcome: dict[str, Any] = self.said["outcome"]
        return outcome


def cases(folder: str) -> list[Case]:
    """All cases of a folder."""
    quick = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files = sorted((_FOLDER / folder).glob("*.yaml"))
    return [Case(file.stem, yaml.load(file.read_text("utf-8"), quick)) for file in files]
