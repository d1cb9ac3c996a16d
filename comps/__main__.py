"""Entry point of the command opea-llm, and of `python -m comps`."""

import os
import signal


def main() -> None:
    """Run the command. During start-up, while there is nothing to close, a signal ends it at once and silently."""
    # The kernel spares process 1, as which a container runs this, from signals that it does not handle.
    end = _end if os.getpid() == 1 else signal.SIG_DFL
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    from comps.cli import cli

    cli(prog_name="opea-llm")


def _end(number: int, _: object) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
