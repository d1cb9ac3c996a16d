"""Replicas: what they say of themselves, and what they can do besides generating."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from comps.core.answers import collect
from comps.core.errors import LLMError, ModelServerError, Refused, Timeout, Unreachable, for_operator, told_at
from comps.core.ports import Completes, CountsTokens, Embeds, Loads
from comps.core.types import Embeddings, Sampling
from comps.model_servers.replicas import Replicas
from comps.model_servers.scripted import Scripted
from tests.model_servers.replica_group import FAILURES, Clock, Completing, Group


async def test_a_description_comes_from_a_replica_that_answers() -> None:
    group = Group(3)
    group.each[0].error, group.each[1].error = Unreachable("away"), Timeout("slow")
    assert (await group.all.describe()).name == "c"


async def test_if_none_answers_all_are_unreachable() -> None:
    group = Group(2)
    group.each[0].error, group.each[1].error = Unreachable("away"), told_at(Refused(500, "oops"), "http://two")
    for _ in range(2):
        with pytest.raises(Unreachable, match="none of the 2 replicas answers") as caught:
            await group.all.describe()
        assert "replica 1: away; replica 2: http://two: " in for_operator(caught.value)
        assert "http://two" not in str(caught.value)
    group.each[0].error = None
    assert (await group.all.describe()).name == "a"


async def test_a_description_may_be_what_tries_a_replica_again() -> None:
    group = Group(2)
    a, _ = group.each
    a.error = Unreachable("away")
    await group.ask()
    group.clock.now += 1
    assert (await group.all.describe()).name == "b"
    assert a.described == 1
    a.error = None
    group.clock.now += 1
    assert (await group.all.describe()).name == "b"  # Set aside for two seconds now.
    group.clock.now += 1
    assert (await group.all.describe()).name == "a"
    assert a.described == 2
    assert sorted([await group.ask(), await group.ask()]) == ["a", "b"]


class Loading(Scripted):
    def __init__(self, error: LLMError | None = None) -> None:
        super().__init__()
        self.error = error
        self.loaded = False

    async def load(self) -> None:
        if self.error:
            raise self.error
        self.loaded = True


class Counting(Scripted):
    error: LLMError | None = None

    async def count_tokens(self, text: str) -> int:
        if self.error:
            raise self.error
        return len(text)


class Embedding(Scripted):
    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings(tuple([1.0] for _ in texts))


@pytest.mark.parametrize("ability", [Loads, CountsTokens, Embeds, Completes])
def test_they_can_do_what_one_of_them_can(ability: type) -> None:
    able = next(one for one in (Loading(), Counting(), Embedding(), Completing("a")) if isinstance(one, ability))
    assert isinstance(Replicas([Scripted(), able]), ability)
    assert not isinstance(Replicas([Scripted(), Scripted()]), Loads | CountsTokens | Embeds | Completes)


async def test_tokens_are_counted_by_one_that_can() -> None:
    failing = Counting()
    failing.error = Unreachable("away")
    replicas = Replicas([Scripted(), failing, Counting()])
    assert isinstance(replicas, CountsTokens)
    assert [await replicas.count_tokens("abc") for _ in range(2)] == [3, 3]
    alone = Replicas([Scripted(), failing])
    assert isinstance(alone, CountsTokens)
    with pytest.raises(Unreachable):
        await alone.count_tokens("abc")


async def test_a_replica_that_counts_tokens_again_is_in_use_again() -> None:
    clock = Clock()
    counting = Counting()
    replicas = Replicas([counting, Scripted([["b"]])], clock)
    assert isinstance(replicas, CountsTokens)
    counting.error = Unreachable("away")
    with pytest.raises(Unreachable):
        await replicas.count_tokens("abc")
    clock.now += 60
    counting.error = None
    assert await replicas.count_tokens("abc") == 3
    assert (await collect(replicas.generate, "?", Sampling(), {})).text == "b"  # Whose turn it is.


@pytest.mark.parametrize("error", FAILURES, ids=repr)
async def test_counting_that_fails_costs_no_replica_its_answers_unless_it_is_away(error: LLMError) -> None:
    each = [Counting([["a"]]), Counting([["b"]])]
    replicas = Replicas(each, Clock())
    assert isinstance(replicas, CountsTokens)
    each[0].error = error
    assert [await replicas.count_tokens("abc") for _ in range(2)] == [3, 3]
    answers = {(await collect(replicas.generate, "?", Sampling(), {})).text for _ in range(2)}
    assert answers == ({"b"} if isinstance(error, Unreachable) else {"a", "b"})


async def test_counting_that_fails_does_not_bring_back_who_was_set_aside() -> None:
    clock, counting = Clock(), Counting([[Unreachable("away")], ["a"]])
    replicas = Replicas([counting, Scripted([["b"]])], clock)
    assert isinstance(replicas, CountsTokens)
    assert (await collect(replicas.generate, "?", Sampling(), {})).text == "b"
    counting.error = ModelServerError("broke")
    with pytest.raises(ModelServerError):
        await replicas.count_tokens("abc")
    assert [(await collect(replicas.generate, "?", Sampling(), {})).text for _ in range(2)] == ["b", "b"]


async def test_embeddings_come_from_one_that_makes_them() -> None:
    replicas = Replicas([Scripted(), Embedding()])
    assert isinstance(replicas, Embeds)
    assert (await replicas.embed(["a", "b"])).vectors == ([1.0], [1.0])


async def test_loading_loads_all_and_one_that_can_answer_is_enough() -> None:
    good, bad = Loading(), Loading(ModelServerError("broken"))
    replicas = Replicas([bad, good])
    assert isinstance(replicas, Loads)
    await replicas.load()
    assert good.loaded
    await collect(replicas.generate, "?", Sampling(), {})
    assert (len(bad.asked), len(good.asked)) == (0, 1)
    none = Replicas([bad, Loading(Unreachable("away"))])
    assert isinstance(none, Loads)
    with pytest.raises(ModelServerError, match="broken"):
        await none.load()


async def test_closing_closes_all() -> None:
    closed: list[str] = []

    class Closing(Scripted):
        async def aclose(self) -> None:
            closed.append((await self.describe()).name)

    await Replicas([Closing(name="a"), Closing(name="b")]).aclose()
    assert closed == ["a", "b"]
