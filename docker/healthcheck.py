"""Whether the service in this container can answer: exit code 0 or 1, with the reason in a line.

    healthcheck.py [VARIABLE …]

The port is in the first of the variables that is set, which are those of the settings if none is named; else it is in
config.ini; else it is 9000. A service with a certificate is asked over TLS; if clients need one too, it is enough that
it says so. Only the standard library is needed, and no shell.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Sequence
from configparser import ConfigParser, Error
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

CONFIG = Path(__file__).with_name("config.ini")
SECTION = "OPEA_Microservice"
ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a service that listens on all addresses is asked."""
PATIENCE = 8.0
"""The service itself gives a model server 5 s to say who it is."""


def setting(variables: Sequence[str], key: str, default: str) -> str:
    """A setting as the service reads it: from the environment, else from the file, else the default."""
    if found := next((os.environ[name] for name in variables if os.environ.get(name)), ""):
        return found
    parser = ConfigParser(interpolation=None)
    try:
        parser.read(CONFIG, "utf-8")
    except (Error, OSError, UnicodeError):  # The service itself says what is wrong there.
        return default
    return parser.get(SECTION, key, fallback=default).strip().strip("\"'") or default


def trouble(host: str, port: str, tls: bool = False) -> str:
    """Why the service cannot answer; empty if it can."""
    try:
        # It is this container's own service, whatever name its certificate has.
        made = HTTPSConnection(host, int(port), timeout=PATIENCE, context=ssl._create_unverified_context())
        with closing(made if tls else HTTPConnection(host, int(port), timeout=PATIENCE)) as connection:
            connection.request("GET", "/ready")
            response = connection.getresponse()
            said = response.read(500).decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError) as error:
        if "CERTIFICATE_REQUIRED" in str(getattr(error, "reason", "")):
            return ""
        return f"{host}:{port} does not answer: {error}"
    return "" if response.status == 200 else f"{response.status}: {' '.join(said.split())}"


def main(variables: Sequence[str]) -> int:
    """Ask once, and say what came of it."""
    host = setting(["USVC_HOST"], "host", "")
    port = setting(variables or ["USVC_PORT", "LLM_USVC_PORT"], "port", "9000")
    tls = not variables and bool(setting(["USVC_TLS_CERTIFICATE"], "tls_certificate", ""))
    why = trouble(ANYWHERE.get(host, host), port, tls)
    print(why or "ready")
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
