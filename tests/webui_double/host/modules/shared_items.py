"""What `shared` gets from other modules, which are imported late: the model, loaded when somebody asks for it, and the lists of files."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def refresh_checkpoints() -> None:
    """Reads the folder of checkpoints anew."""
    from . import sd_models

    sd_models.list_models()


def reload_hypernetworks() -> None:
    """Reads the folder of hypernetworks anew."""
    from . import shared
    from .hypernetworks import hypernetwork

    shared.hypernetworks = hypernetwork.list_hypernetworks(shared.cmd_opts.hypernetwork_dir)


class WithModel(ModuleType):
    """The class of the module `shared`."""

    @property
    def sd_model(self) -> Any:
        from . import sd_models

        return sd_models.model_data.get_sd_model()

    @sd_model.setter
    def sd_model(self, value: Any) -> None:
        from . import sd_models

        sd_models.model_data.set_sd_model(value)
