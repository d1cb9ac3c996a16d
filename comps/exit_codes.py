"""Exit codes of the command.

`serve` ends with 0 when it was told to end (TERM, Ctrl-C, POST /shutdown) and all running answers were finished, with
CUT_OFF when some were not within drain_seconds, and with 128 + the signal's number, as shells write it, when a second
signal ended it at once: 143 for TERM, 130 for Ctrl-C.
"""

FAILED, WRONG_SETTINGS, CUT_OFF, INTERRUPTED = 1, 2, 4, 130


def ended_at_once(number: int) -> int:
    """Returns the exit code for a signal that ended the command at once."""
    return 128 + number
