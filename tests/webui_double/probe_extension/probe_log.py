"""A module of an extension: imported once, it stays when the page is built anew."""

from __future__ import annotations

import os
import sys

LOG = {"order": [], "loaded": [], "components": {}, "module": object()}
EVENTS = ("app_started", "model_loaded", "ui_tabs", "ui_train_tabs", "ui_settings", "before_ui", "before_reload", "script_unloaded")


def script_loads(name, file, folder):
    """Notes that a script of the extension is run; returns what makes callbacks that note their name. The script registers them: the host looks at who does."""
    stem = os.path.splitext(os.path.basename(file))[0]
    LOG["loaded"].append({
        "name": name, "in sys.modules": name in sys.modules, "on sys.path": folder in sys.path, "folder": folder, "basedir": os.path.basename(folder),
    })  # fmt: skip
    LOG["order"].append(f"{stem} import")

    def said(what):
        def note(*args, **more):
            LOG["order"].append(f"{stem} {what}")

        return note

    return said
