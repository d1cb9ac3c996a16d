"""Settings: the environment before the configuration file before the defaults, read once and frozen."""

from __future__ import annotations

from comps.settings.loading import CONVERSATION, Served, Settings, load_settings
from comps.settings.part import Setting
from comps.settings.prompt_templates import read_templates
from comps.settings.sections import SECTIONS, Dialects, Model, Section
from comps.settings.variables import environment_names

__all__ = [
    "CONVERSATION",
    "SECTIONS",
    "Dialects",
    "Model",
    "Section",
    "Served",
    "Setting",
    "Settings",
    "environment_names",
    "load_settings",
    "read_templates",
]
