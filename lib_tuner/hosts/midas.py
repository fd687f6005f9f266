"""The WebUI's own MiDaS as a depth model: the one that it loads beside SD2's depth model. `w` is the host's modules as hosts/a1111.py hands them in."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.depth import stretched
from ..progress import reason_of
from ..sd.place import in_ram, stays

TYPE = "dpt_hybrid"  # as SD2's depth model and the ControlNet extension's depth_midas


class Midas:
    """Loaded when it is first asked, which may fetch 470 MB; in RAM between pictures, so that video memory is the run's."""

    def __init__(self, w: Any, device: torch.device | str):
        self.w, self.device = w, torch.device(device)
        self._model: Any = None
        self._place: Any = None
        self._transform: Any = None

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> Tensor:
        """(3, H, W) in [0, 1] -> (1, H, W). Raises ValueError where it cannot be loaded."""
        if self._model is None:
            self._load()
        x = torch.from_numpy(self._transform({"image": picture.permute(1, 2, 0).numpy()})["image"])[None]  # (1, 3, h, w), shorter side 384
        with self._place():
            found = self._model(x.to(self.device, torch.float32))
        return stretched(found[0].float().cpu(), picture.shape[1:])

    def _load(self) -> None:
        api = self.w.sd_models.midas.api
        file = Path(api.ISL_PATHS[TYPE])
        try:
            self._model, self._transform = api.load_model(TYPE)
        except Exception as error:  # whatever the host raises: no connection, a file that was cut off, packages that do not fit
            gc.collect()
            raise ValueError(f"depth_model: the WebUI cannot load MiDaS ({reason_of(error)}); it is fetched at its first use to {file}: check the connection, delete that file if it is there, and try again, "
                             "or name an .onnx file of a depth model.") from error
        self._model.requires_grad_(False)
        self._place = stays if self.device.type == "cpu" else in_ram(self._model, self.device)
