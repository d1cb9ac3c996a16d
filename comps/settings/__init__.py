"""Settings, read once and frozen: flags, the environment, the configuration file, the defaults, in this order."""

from __future__ import annotations

from comps.config_files.base import ConfigValue, read_text
from comps.settings.loaded_section import Setting
from comps.settings.loading import CONVERSATION, Flags, ServedModel, Settings, gather_settings, load_settings
from comps.settings.prompt_templates import read_templates
from comps.settings.section import Section
from comps.settings.sections import SECTIONS, Dialects, Model
from comps.settings.variables import environment_names

__all__ = [
    "CONVERSATION",
    "SECTIONS",
    "ConfigValue",
    "Dialects",
    "Flags",
    "Model",
    "Section",
    "ServedModel",
    "Setting",
    "Settings",
    "environment_names",
    "gather_settings",
    "load_settings",
    "read_templates",
    "read_text",
]
