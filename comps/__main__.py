"""`python -m comps` is the command opea-llm."""

from comps.cli import main

main()
