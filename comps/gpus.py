"""The graphics cards of this machine, as nvidia-smi tells them."""

from __future__ import annotations

import asyncio
import subprocess
from math import nan

from comps.core.errors import LLMError
from comps.core.types import GPU
from comps.logs import log

_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=index,name,utilization.gpu,temperature.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)
_NVIDIA_SECONDS = 10
"""The deadline for nvidia-smi, in seconds; it wakes a suspended GPU."""


class _Run:
    """The last run of nvidia-smi."""

    task: asyncio.Task[list[GPU]] | None = None


async def gpus() -> list[GPU]:
    """Returns the state of all NVIDIA GPUs; an empty list if nvidia-smi is not installed.

    One run of nvidia-smi answers all who ask meanwhile.

    Raises:
        LLMError: nvidia-smi failed.
    """
    task = _Run.task
    if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
        task = _Run.task = asyncio.ensure_future(_asked())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)


async def _asked() -> list[GPU]:
    try:
        done = await asyncio.to_thread(
            subprocess.run, _NVIDIA_SMI, capture_output=True, text=True, timeout=_NVIDIA_SECONDS, check=False
        )
        if done.returncode:
            raise LLMError(f"nvidia-smi: {(done.stdout or done.stderr).strip()}")
        return [_gpu(line) for line in done.stdout.splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("nvidia-smi: %s", error)
        raise LLMError("nvidia-smi: it cannot be asked; the service's log has the reason") from None


def _gpu(line: str) -> GPU:
    index, name, *numbers = line.split(", ")
    load, temperature, used, total = map(_number, numbers)
    return GPU(int(index), name, load, temperature, used, total)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # Such as [N/A].
        return nan
