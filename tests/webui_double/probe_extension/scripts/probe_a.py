"""Writes down when it is called."""

from __future__ import annotations

import probe_log
from modules import script_callbacks, scripts

said = probe_log.script_loads(__name__, __file__, scripts.basedir())
for event in probe_log.EVENTS:
    getattr(script_callbacks, f"on_{event}")(said(event))
