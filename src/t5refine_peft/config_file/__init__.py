"""A training run as one TOML file, whose keys, defaults and comments are those of the dataclasses in `config`."""

from t5refine_peft.config_file.reading import load_config
from t5refine_peft.config_file.writing import config_text, save_config

__all__ = ["config_text", "load_config", "save_config"]
