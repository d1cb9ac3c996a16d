"""Exit codes of the command.

`serve` ends with 0 when it was told to end (TERM, Ctrl-C, HUP, POST /shutdown) and all running answers were finished,
with CUT_OFF when some were not within drain_seconds, and with 128 + the signal's number, as shells write it, when a
second signal ended it at once: 143 for TERM, 130 for Ctrl-C.
"""

FAILED, WRONG_SETTINGS, FOUND, CUT_OFF, INTERRUPTED = 1, 2, 3, 4, 130

MEANINGS = {
    0: "done",
    FAILED: "failed: the model or the service cannot be reached or does not answer, a file cannot be written",
    WRONG_SETTINGS: "wrong: a setting, an argument, or a file or question that cannot be used",
    FOUND: "check --through has found a fault on the path; replay has found a difference",
    CUT_OFF: "serve: answers were cut off at drain_seconds",
    INTERRUPTED: "ended by Ctrl-C (143: by TERM)",
}
"""What each code means, for `opea-llm --help` and the documentation."""


def ended_at_once(number: int) -> int:
    """Returns the exit code for a signal that ended the command at once."""
    return 128 + number
