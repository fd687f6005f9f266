"""Where the host and its data lie. They are told apart, as with --data-dir, so that every start has data of its own."""

from __future__ import annotations

from pathlib import Path

script_path = data_path = models_path = extensions_dir = ""


def lay_out(folder: Path) -> None:
    """The empty folders of a new installation below `folder`; comes before any other module of the host is imported."""
    global script_path, data_path, models_path, extensions_dir
    data = folder / "data"
    places = folder / "webui", data, data / "models", data / "extensions"
    kinds = (data / "models" / kind for kind in ("Stable-diffusion", "VAE", "Lora", "LyCORIS", "hypernetworks"))
    for place in (*places, *kinds, data / "embeddings"):
        place.mkdir(parents=True, exist_ok=True)
    script_path, data_path, models_path, extensions_dir = map(str, places)
