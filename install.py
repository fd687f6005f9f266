"""The WebUI runs this before its start. It installs, upgrades and downgrades nothing: all that the Tuner needs is there with the WebUI.

What is missing is said in one sentence, and the WebUI starts as ever.
"""

import importlib.util

NEEDED = {"torch": "torch", "gradio": "gradio", "safetensors": "safetensors", "open_clip": "open_clip_torch", "einops": "einops", "PIL": "pillow"}

missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    print(f"The Tuner will not work: this WebUI lacks {', '.join(missing)}, which it normally brings. Start it once without --skip-prepare-environment.")
