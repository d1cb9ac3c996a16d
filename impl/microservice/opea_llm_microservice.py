"""Starts the service: `python opea_llm_microservice.py`, from any folder, installed or not."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from comps.__main__ import main  # noqa: E402  # In a checkout that is not installed, this needs the line above.

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--config" not in arguments and (ROOT / "config.ini").exists():
        arguments += ["--config", str(ROOT / "config.ini")]
    sys.argv[1:] = ["serve", *arguments]
    main()
