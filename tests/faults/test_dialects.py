"""A model server that breaks off, as a client of each dialect sees it."""

from __future__ import annotations

import re

import pytest

from comps.dialects import DIALECTS
from comps.dialects.shared.base import GenerationCall
from tests.dialects.kinds import KINDS
from tests.dialects.test_contract import check_error, only, own_statuses, streamed
from tests.faults.model_server import FaultyServer
from tests.faults.scripts import closed_in_a_chunk, ended_early, reset_before_headers
from tests.faults.test_replies import at_the_connection
from tests.service import running


@at_the_connection
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_every_client_gets_an_error_in_its_dialects_shape(
    dialect: str, framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultyServer().listening() as server:
        settings = {
            **only(dialect),
            "FRAMEWORK": framework,
            "MODEL_SERVER": "openai_api",
            "LLM_MODEL_SERVER_ENDPOINT": server.url,
        }
        async with running({}, monkeypatch, settings) as service:
            for kind in [one for one in KINDS if one.dialect == dialect and issubclass(one.call, GenerationCall)]:
                for server.fault in (reset_before_headers, closed_in_a_chunk, ended_early):
                    for body in kind.bodies(streamed=False)[:1]:
                        answer = await service.post(body, kind.path)
                        assert answer.status in own_statuses(dialect, 502)
                        check_error(dialect, answer)
                for server.fault in (closed_in_a_chunk, ended_early):
                    if kind.bodies(streamed=True):
                        chunks, _ = await streamed(service, kind)
                        assert b"rror" in chunks[-1].lower()
                        assert not re.search(rb'\[DONE\]|"finish_reason": ?"(?!ERROR)', b"".join(chunks))
