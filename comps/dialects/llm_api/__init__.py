"""1b5d's llm-api."""
