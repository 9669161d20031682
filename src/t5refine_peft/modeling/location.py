"""Where a base model's files are; without torch, so that what needs the tokenizer alone starts at once."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from t5refine_peft.errors import RefineError
from t5refine_peft.offline import is_offline

BUILTIN = "builtin:"


def base_directory(base: str | Path) -> Path:
    """The local directory of a base; a hub id is downloaded once, and taken from the cache offline.

    Raises:
        RefineError: there is no such base.
    """
    name = str(base)
    if name.startswith(BUILTIN):
        assets = Path(str(files("t5refine_peft"))) / "assets"
        directory = assets / name.removeprefix(BUILTIN)
        if not directory.is_dir():
            known = ", ".join(BUILTIN + path.name for path in sorted(assets.iterdir()) if path.is_dir())
            raise RefineError(f"no built-in base {name!r}: expected {known}")
        return directory
    path = Path(base)
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise RefineError(f"{name} is no model directory: expected a directory with config.json, or a hub id")
    return _from_hub(name)


def config_file(base: str | Path) -> Path:
    """A base's config.json: of a hub id, that file alone is downloaded.

    Raises:
        RefineError: there is no such base.
    """
    name, path = str(base), Path(base)
    if path.is_file():
        return path
    if path.is_dir() or name.startswith(BUILTIN) or path.suffix or name.count("/") != 1:
        return base_directory(base) / "config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError) as error:
        raise _not_from_hub(name, error) from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "generation_config.json", "spiece.model", "tokenizer_config.json", "*.safetensors*"]
    try:
        directory = Path(snapshot_download(name, allow_patterns=patterns))
        if not any(directory.glob("*.safetensors")):
            directory = Path(snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*"]))
    except (OSError, ValueError) as error:
        raise _not_from_hub(name, error) from error
    return directory


def _not_from_hub(name: str, error: Exception) -> RefineError:
    if is_offline():
        return RefineError(
            f"{name} is no local directory, and is not in the cache of downloaded models, which is all that --offline "
            "(or HF_HUB_OFFLINE) allows; run once without it, or give --base a model's directory"
        )
    return RefineError(
        f"{name} is no local directory, and the hub could not give it ({type(error).__name__}); check the name and the "
        "connection, or give --base a model's directory, or builtin:mt5-mini, the small base for trying things out"
    )
