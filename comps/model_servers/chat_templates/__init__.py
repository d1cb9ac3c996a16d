"""Chat templates and tokenizers applied in this service, for model servers that do not."""
