"""The documents of the five services that this one takes the place of, byte for byte, and the examples printed in them.

`python -m tests.seeds URL` runs all of them against a running service and prints a table of what it said.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path(__file__).parent
SEEDS = {file.stem: file.read_text("utf-8") for file in sorted(FOLDER.glob("*.md"))}

NOT_OURS: Mapping[str, tuple[str, ...]] = {
    "starts or makes something else": (
        "cd ../../\ndocker build",
        "docker ",
        "docker-compose ",
        "export HF_TOKEN=",
        "export HUGGINGFACEHUB_API_TOKEN=",
    ),
    "goes to a model server, on port 8008": ("curl http://${your_ip}:8008/",),
    "sets this service up, or says what it prints": ("pip install -r impl/", "  $ python opea_llm_microservice.py"),
    "a file of settings": (
        "# OPEA LLM Microservice Configuration File\n",
        "models_dir: ",
        "model_family: ",
        "llm_chat:\n",
        "register_conv_template(\n",
    ),
    "what something says": ('{\n  "id":"fd49a0d75f7f54089572fa30510f8d3a",', "+-------"),
    "a list of models": ("llama-2-7b, llama-2-13b,",),
}
"""Code in the documents that is nothing to send to this service, by how it begins."""

MENDED: Mapping[str, tuple[tuple[str, str], ...]] = {
    '    "params": {\n        ...\n': (("...", ""),),
    '"suffix": null or string,': (
        ("null or string", "null"),
        ("null or integer", "null"),
        ("False", "false"),
        (r"\Q", "Q"),
        ('"frequency_penalty:', '"frequency_penalty":'),
        ('"repeat_penalty": 1.1\n', '"repeat_penalty": 1.1,\n'),
        ('"top_k": 40,', '"top_k": 40'),
    ),
}
"""What has to be put right in the examples that are no JSON as they are printed, by what is in them."""

_CODE = re.compile(r"^ *```\w*\n(.*?)^ *```|```([^`\n]+)```|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
_CURL = re.compile(r"^curl .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)
_BARE = re.compile(r"\A(POST) (/\w+)\n(\{.*\})\s*\Z", re.DOTALL)
_ADDRESS = re.compile(r"(https?://)?(localhost|\$\{your_ip\}):\d+")
_CURLRC = 'silent\nshow-error\nnoproxy = "*"\nwrite-out = "%{stderr}%{http_code} %{content_type}"\n'


@dataclass(frozen=True)
class Example:
    """Something printed that a client sends: a curl command, or a method, a path and a body."""

    seed: str
    line: int
    printed: str

    def __str__(self) -> str:
        return f"{self.seed}.md:{self.line}"

    @property
    def mends(self) -> tuple[tuple[str, str], ...]:
        """What has to be put right in it, as (what stands there, what shall); usually nothing."""
        return next((mends for part, mends in MENDED.items() if part in self.printed), ())

    def mended(self) -> Example:
        """It, put right."""
        printed = self.printed
        for wrong, right in self.mends:
            assert wrong in printed, wrong
            printed = printed.replace(wrong, right)
        return replace(self, printed=printed)

    def command(self, url: str) -> str:
        """The command as it is printed, but for the address; of a bare body, the curl command that posts it."""
        if bare := _BARE.match(self.printed):
            method, path, body = bare.groups()
            return f"curl -X {method} {url}{path} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
        return _ADDRESS.sub(url, self.printed).rstrip()

    @property
    def path(self) -> str:
        """Where it goes."""
        return next(word.removeprefix("http://it") for word in self._words if word.startswith("http://it"))

    @property
    def body(self) -> Any:
        """What it sends; None if that is nothing."""
        words = self._words
        texts = [words[place + 1] for place, word in enumerate(words) if word in ("-d", "--data")]
        return json.loads(texts[0]) if texts else None

    @property
    def _words(self) -> list[str]:
        return shlex.split(self.command("http://it").replace("\\\n", " "))


@dataclass(frozen=True)
class Printed:
    """An answer, as curl got it."""

    status: int
    media_type: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def code(seed: str) -> Iterator[tuple[int, str]]:
    """Everything that a document shows as code, but for single words, with the line where it begins."""
    for found in _CODE.finditer(SEEDS[seed]):
        group = next(number for number in (1, 2, 3) if found[number] is not None)
        if " " in found[group]:
            yield SEEDS[seed].count("\n", 0, found.start(group)) + 1, found[group]


def examples(seed: str) -> Iterator[Example]:
    """What a document prints for clients to send."""
    for line, text in code(seed):
        if text.startswith(tuple(start for starts in NOT_OURS.values() for start in starts)):
            continue
        if _BARE.match(text):
            yield Example(seed, line, text)
        for curl in _CURL.finditer(text):
            yield Example(seed, line + text.count("\n", 0, curl.start()), curl[0])


EXAMPLES = [example for seed in SEEDS for example in examples(seed)]


def run(command: str) -> Printed:
    """What curl says to a command that bash runs; its own settings file makes it tell the status as well."""
    with TemporaryDirectory() as folder:
        (Path(folder) / ".curlrc").write_text(_CURLRC)
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "CURL_HOME": folder}
        done = subprocess.run(["bash", "-euc", command], env=environment, capture_output=True, timeout=300, check=False)
    said = done.stderr.decode()
    if done.returncode:
        raise RuntimeError(f"{command}\nended with {done.returncode}: {said}")
    status, _, media_type = said.partition(" ")
    return Printed(int(status), media_type, done.stdout)
