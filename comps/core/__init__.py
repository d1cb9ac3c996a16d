"""The core: values, errors, ports and the generation logic. It has no HTTP, no vendor packages and no settings file."""
