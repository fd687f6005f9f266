"""The WebUI runs this file at its start and at every Reload UI."""

from lib_tuner.hosts import a1111

a1111.register()
