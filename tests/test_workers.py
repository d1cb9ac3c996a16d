"""Several processes on the same port, and their parent."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from comps.app import read_settings
from comps.core.errors import SettingsError
from comps.model_servers.scripted import Scripted
from comps.opening import open_models
from comps.shared_metrics import SharedMetrics, Snapshot
from tests.process import PATIENCE, ROOT, Running, children
from tests.test_shutdown import AS_PROCESS_1, STREAMED, Told, command, connected, exit_code, got, rest, said, told

PARENT = """
import os, signal, sys, time
from comps.workers import Workers

def say(text):  # In one write: with PYTHONUNBUFFERED, print makes two, between which another process may write.
    os.write(1, (text + "\\n").encode())

def work(worker):
    signals = []
    worker.handle_signals(lambda number, _: signals.append(number))
    say(f"begun {worker.number} {worker.is_first} {os.getpid()}")
    {work}

sys.exit(Workers(2, work, {seconds}, say, lambda *_: None, lambda: say("ending")).run())
"""
ENDS = "\n    ".join(
    (
        "while not signals and os.getppid() == worker.parent: time.sleep(0.01)",
        "if signals[-1:] != [signal.SIGUSR1]: return 131",
        "say('told')",
        "return 0",
    )
)
UNTIL_QUIT = "while signal.SIGQUIT not in signals and os.getppid() == worker.parent: time.sleep(0.01)\n    return 131"


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Nothing goes on after a test, however it ends."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


class Parent:
    """A parent of two workers that run a piece of Python, in a process of its own."""

    def __init__(self, work: str, *within: str, seconds: float = 60) -> None:
        program = PARENT.replace("{work}", work).replace("{seconds}", str(seconds))
        self.process = subprocess.Popen(
            [*within, sys.executable, "-c", program],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        STARTED.append(self.process)

    def until(self, said: str, times: int = 1) -> list[str]:
        """The lines with something that it says, when it has said that so many times."""
        assert self.process.stdout
        while len(found := [line for line in self.said if said in line]) < times:
            line = self.process.stdout.readline()
            assert line, self.said
            self.said.append(line.strip())
        return found

    def begun(self) -> list[int]:
        """The processes of both workers."""
        lines = [line.split() for line in self.until("begun", 2)]
        assert [line[1:3] for line in sorted(lines)] == [["0", "True"], ["1", "False"]]
        return [int(line[3]) for line in sorted(lines)]

    def end(self) -> tuple[int, str]:
        """The exit code, and all that it has said since."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_workers(number: signal.Signals) -> None:
    parent = Parent(ENDS)
    parent.begun()
    parent.process.send_signal(number)
    assert parent.end() == (0, "ending\ntold\ntold\n")


def test_a_worker_may_have_all_of_them_end_and_a_signal_after_that_is_the_first_one() -> None:
    until_eof = "sys.stdin.read()\n    return 131 if signal.SIGQUIT in signals else 0"
    parent = Parent("worker.number or worker.end_all()\n    " + ENDS.replace("return 0", until_eof))
    parent.begun()
    parent.until("told", 2)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.end()[0] == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_them_at_once_and_is_in_the_exit_code(second: signal.Signals) -> None:
    parent = Parent(UNTIL_QUIT)
    parent.begun()
    parent.process.send_signal(signal.SIGTERM)
    parent.until("ending")
    parent.process.send_signal(second)
    assert parent.end() == (128 + second, "")


def test_a_worker_that_dies_is_started_again_after_pauses_that_grow() -> None:
    parent = Parent(ENDS)
    _, mortal = parent.begun()
    pauses = []
    for times in range(1, 4):
        os.kill(mortal, signal.SIGKILL)
        ended = parent.until("worker 2 has ended", times)[-1]
        begun = parent.until("begun 1 False", times + 1)[-1]
        found = re.fullmatch(r"worker 2 has ended \(signal 9\); it is started again in (.+) s", ended)
        assert found
        pauses.append(float(found[1]))
        mortal = int(begun.split()[3])
    assert pauses == [0.1, 0.2, 0.4]
    parent.process.send_signal(signal.SIGTERM)
    assert parent.end()[0] == 0


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_of_a_worker_that_the_others_would_have_too_ends_all_with_its_exit_code(code: int) -> None:
    parent = Parent(f"if worker.number: return {code}\n    {ENDS}")
    assert parent.end()[0] == code


def test_answers_that_one_worker_cuts_off_are_in_the_exit_code() -> None:
    parent = Parent(ENDS.replace("return 0", "return 4 if worker.number else 0"))
    parent.begun()
    parent.process.send_signal(signal.SIGTERM)
    assert parent.end()[0] == 4


def test_a_worker_that_does_not_end_is_killed() -> None:
    parent = Parent("signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGQUIT, signal.SIGUSR1})\n    time.sleep(3600)")
    parent.begun()
    parent.process.send_signal(signal.SIGTERM)
    parent.until("ending")
    parent.process.send_signal(signal.SIGTERM)
    parent.process.send_signal(signal.SIGINT)
    assert parent.end()[0] in (128 + signal.SIGTERM, 128 + signal.SIGINT)  # Of two that wait, either comes first.


@pytest.mark.skipif(not AS_PROCESS_1, reason="a namespace for processes needs root and the command unshare")
def test_as_process_1_the_parent_reaps_processes_that_are_not_its_own() -> None:
    orphan = "os.fork() or (os.fork() or say('orphan'), os._exit(0))"
    parent = Parent(f"worker.number or {orphan}\n    {ENDS}", *AS_PROCESS_1)
    parent.begun()
    parent.until("orphan")
    (process_1,) = children(parent.process.pid)
    until = time.monotonic() + PATIENCE
    while len(children(process_1)) != 2:  # Those of its workers.
        assert time.monotonic() < until
    os.kill(process_1, signal.SIGTERM)
    assert parent.end()[0] == 0


def family(kind: type[Metric], name: str, value: float, **labels: str) -> Metric:
    metric = kind(name, "Text", labels=list(labels))  # type: ignore[call-arg]
    metric.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]
    return metric


def counted(requests: float, running: float, outcome: str = "200") -> Snapshot:
    """What a worker has counted."""
    histogram = HistogramMetricFamily("seconds", "Text", [("0.1", requests), ("+Inf", requests + 1)], requests / 10)
    requested = family(CounterMetricFamily, "requests", requests, outcome=outcome)
    return Snapshot([requested, family(GaugeMetricFamily, "running", running), histogram], [requests], [running])


def samples(snapshot: Snapshot) -> dict[str, float]:
    lines = generate_latest(snapshot).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


def test_metrics_of_all_workers_are_added_up_and_counters_outlive_the_worker(tmp_path: Path) -> None:
    one, two = (SharedMetrics(tmp_path, number, 3) for number in (0, 1))
    two.publish(counted(5, 2))
    whole = one.whole(counted(3, 1))
    assert samples(whole) == {
        'requests_total{outcome="200"}': 8,
        "running": 3,
        'seconds_bucket{le="0.1"}': 8,
        'seconds_bucket{le="+Inf"}': 10,
        "seconds_count": 10,
        "seconds_sum": 0.8,
    }
    assert sorted(whole.latencies) == [3, 5]
    SharedMetrics(tmp_path, 1, 3).publish(Snapshot())  # As the parent does when a worker has ended.
    assert samples(one.whole(counted(3, 1)))["running"] == 1
    again = SharedMetrics(tmp_path, 1, 3)
    again.publish(counted(1, 1, outcome="503"))
    after = samples(one.whole(counted(3, 1)))
    assert (after['requests_total{outcome="200"}'], after['requests_total{outcome="503"}']) == (8, 1)
    assert (after["running"], after["seconds_count"]) == (2, 12)


@pytest.mark.parametrize(
    ("kind", "framework"),
    [("openvino", "native"), ("openvino", "langchain"), ("vllm", "langchain"), ("scripted", "native")],
)
def test_several_workers_are_refused_where_each_would_load_the_model(
    monkeypatch: pytest.MonkeyPatch, kind: str, framework: str
) -> None:
    endpoint = "http://one:1, http://two:1" if kind == "vllm" else ""
    variables = {
        "MODEL_SERVER": kind,
        "FRAMEWORK": framework,
        "LLM_MODEL_SERVER_ENDPOINT": endpoint,
        "USVC_WORKERS": "2",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(Path(os.devnull))
    if kind != "openvino":
        open_models(settings)
        return
    with pytest.raises(SettingsError) as caught:
        open_models(settings)
    (problem,) = caught.value.problems
    assert problem.startswith(f"[Model] model_server = {kind}: the model would be loaded by each of the workers")
    assert problem.endswith(" Use workers = 1, or a model server.")
    assert "[OPEA_Microservice] workers = 2" in problem


async def until_counted(service: Running, done: int, running: int) -> None:
    """Ask for metrics until that many requests were answered, and that many are being answered."""

    async def look() -> None:
        counted = None
        while counted != (done, running):
            text = (await got(service, "/metrics")).body.decode()
            ended = re.findall(r"^opea_llm_requests_total\S* (\S+)$", text, re.MULTILINE)
            (begun,) = re.findall(r"^opea_llm_requests_in_flight (\S+)$", text, re.MULTILINE)
            counted = sum(map(float, ended)), float(begun)

    await asyncio.wait_for(look(), PATIENCE)


def descriptors(process: int) -> int:
    """How many file descriptors a process has open."""
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


async def test_workers_share_a_port_count_together_and_lose_nothing_at_the_end_that_a_client_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Told()
    async with command(monkeypatch, model, "--workers", "2", USVC_ALLOW_SHUTDOWN="true") as service:
        streams, before = 40, [descriptors(worker) for worker in service.children()]
        opened = [connected(service) for _ in range(streams)]
        running = [await one.__aenter__() for one in opened]
        for stream in running:
            await told(stream, STREAMED)
            await stream.head()
        await until_counted(service, 0, streams)
        after = [descriptors(worker) for worker in service.children()]
        assert all(more > less + 8 for more, less in zip(after, before, strict=True)), "each has a part of the streams"
        async with connected(service) as asking:
            await asking.send("POST", "/shutdown")
            assert (await asking.answer()).status == 200
        await said(service, "ending when all running answers have ended")
        model.goes_on.set()
        for stream in running:
            chunks = [chunk async for chunk in rest(stream)]
            assert chunks[-1] == b"data: [DONE]\n\n"
        assert await exit_code(service) == 0
        for one in opened:
            await one.__aexit__(None, None, None)


async def test_workers_go_on_without_one_of_them_and_end_without_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scripted([["one"]])
    async with command(monkeypatch, model, "--workers", "2") as service:
        first, second = service.children()
        async with connected(service) as one:
            await told(one, STREAMED)
            assert (await one.answer()).status == 200
        await until_counted(service, 1, 0)
        os.kill(second, signal.SIGTERM)  # As if it were sent to all; ignored.
        os.kill(second, signal.SIGUSR1)  # It ends in order, and is started again.
        await said(service, "worker 2 has ended (exit code 0)")
        await until_counted(service, 1, 0)
        os.kill(first, signal.SIGKILL)
        health = await asyncio.gather(
            *(got(service, "/health") for _ in range(20))
        )  # Half of them wait for the new one.
        assert {one.status for one in health} == {200}
        await said(service, "worker 1 has ended (signal 9)")
        service.process.kill()
        await asyncio.to_thread(service.reading.join, PATIENCE)  # What they write to ends when all of them have.
        assert not service.reading.is_alive()
