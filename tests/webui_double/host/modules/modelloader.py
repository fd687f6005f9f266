"""Model files by folder, fetched where there is none. The double has no network."""

from __future__ import annotations

import os
import urllib.error


def load_file_from_url(url: str, *, model_dir: str, progress: bool = True, file_name: str | None = None) -> str:
    """The path of a file that is there already."""
    path = os.path.abspath(os.path.join(model_dir, file_name or url.rpartition("/")[2]))
    os.makedirs(model_dir, exist_ok=True)
    if not os.path.exists(path):
        raise urllib.error.URLError("the double has no network")
    return path


def load_models(
    model_path: str, model_url: str | None = None, command_path: str | None = None, ext_filter: list[str] | None = None, download_name: str | None = None,
    ext_blacklist: list[str] | None = None,
) -> list[str]:  # fmt: skip
    """Files of a folder, or the one that was fetched. Whatever fails is no error here: then the list is empty."""
    try:
        names = sorted(os.listdir(model_path)) if os.path.isdir(model_path) else []
        found = [os.path.join(model_path, name) for name in names if ext_filter is None or os.path.splitext(name)[1] in ext_filter]
        if model_url and not found:
            found.append(load_file_from_url(model_url, model_dir=model_path, file_name=download_name) if download_name else model_url)
        return found
    except Exception:
        return []
