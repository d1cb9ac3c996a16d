"""Models in this service: each engine has a process of its own."""
