"""Conversations as text, and texts as tokens, where the model server does neither."""
