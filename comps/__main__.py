"""Entry point of the command opea-llm, and of `python -m comps`."""

import signal


def main() -> None:
    """Run the command. During start-up, while there is nothing to close, Ctrl-C ends it at once and silently."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from comps.cli import cli

    cli()


if __name__ == "__main__":
    main()
