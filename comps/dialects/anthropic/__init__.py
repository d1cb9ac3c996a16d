"""Anthropic's Messages API; see `dialect`."""
