"""The entry point of the command opea-llm, which `python -m comps` is too."""

import signal


def main() -> None:
    """Run the command. Until it has something to close, Ctrl-C ends it at once and silently."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from comps.cli import cli

    cli()


if __name__ == "__main__":
    main()
