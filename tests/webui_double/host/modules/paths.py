"""The folders under the name that extensions import them by."""

from __future__ import annotations

from .paths_internal import data_path, extensions_dir, models_path, script_path

__all__ = ["data_path", "extensions_dir", "models_path", "script_path"]
