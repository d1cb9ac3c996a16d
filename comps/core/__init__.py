"""The words, errors and rules of the house; no HTTP, no vendor, no settings file."""
