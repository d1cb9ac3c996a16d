"""UKP-SQuARE's LLM Ops."""
