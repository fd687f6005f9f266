"""Words for a picture: BLIP's sentence. The double's BLIP names the colour that there is most of; CLIP is there to be loaded beside it, as in the host."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from . import devices, errors, lowvram, modelloader, paths, shared

SIDE = 384
COLOURS = ("red", "green", "blue")


class SmallBlip(nn.Module):
    """(1, 3, 384, 384) -> a list with one sentence; longer where a longer one is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def generate(self, image: torch.Tensor, sample: bool = False, num_beams: int = 3, max_length: int = 30, min_length: int = 10) -> list[str]:
        if image.shape != (1, 3, SIDE, SIDE) or image.dtype != self.weight.dtype:
            raise RuntimeError(f"{tuple(image.shape)} in {image.dtype} is no input of this model")
        colour = COLOURS[int(image.mean(dim=(0, 2, 3)).argmax())]
        return [f"there is a picture of the colour {colour} on a wall" + " and more" * (min_length > 24)]


class InterrogateModels:
    """Both models, loaded by `load` and sent away by `unload` unless the settings keep them."""

    blip_model: Any = None
    clip_model: Any = None
    clip_preprocess: Any = None
    dtype: Any = None
    running_on_cpu: Any = None

    def __init__(self, content_dir: str):
        self.loaded_categories, self.skip_categories, self.content_dir = None, [], content_dir
        self.running_on_cpu = devices.device_interrogate == torch.device("cpu")

    def load_blip_model(self) -> nn.Module:
        files = modelloader.load_models(
            model_path=os.path.join(paths.models_path, "BLIP"), model_url="https://example.org/model_base_caption_capfilt_large.pth", ext_filter=[".pth"],
            download_name="model_base_caption_capfilt_large.pth",
        )  # fmt: skip
        with open(files[0], "rb"):
            return SmallBlip().eval()

    def load_clip_model(self) -> tuple[nn.Module, Any]:
        return SmallBlip().eval(), None

    def load(self) -> None:
        for name, make in (("blip_model", self.load_blip_model), ("clip_model", lambda: self.load_clip_model()[0])):
            model = getattr(self, name)
            if model is None:
                model = make()
                if not shared.cmd_opts.no_half and not self.running_on_cpu:
                    model = model.half()
            setattr(self, name, model.to(devices.device_interrogate))
        self.dtype = next(self.clip_model.parameters()).dtype

    def send_clip_to_ram(self) -> None:
        self._send("clip_model")

    def send_blip_to_ram(self) -> None:
        self._send("blip_model")

    def _send(self, name: str) -> None:
        if not shared.opts.interrogate_keep_models_in_memory and getattr(self, name) is not None:
            setattr(self, name, getattr(self, name).to(devices.cpu))

    def unload(self) -> None:
        self.send_clip_to_ram()
        self.send_blip_to_ram()
        devices.torch_gc()

    def generate_caption(self, pil_image: Any) -> str:
        import numpy

        pixels = torch.from_numpy(numpy.asarray(pil_image.resize((SIDE, SIDE)), dtype=numpy.float32) / 255 - 0.5).permute(2, 0, 1)
        opts = shared.opts
        with torch.no_grad():
            found = self.blip_model.generate(
                pixels[None].type(self.dtype).to(devices.device_interrogate), sample=False, num_beams=opts.interrogate_clip_num_beams,
                min_length=opts.interrogate_clip_min_length, max_length=opts.interrogate_clip_max_length,
            )  # fmt: skip
        return found[0]

    def interrogate(self, pil_image: Any) -> str:
        """What the host's button asks: an error is no error here, but a word."""
        shared.state.begin(job="interrogate")
        try:
            lowvram.send_everything_to_cpu()
            self.load()
            text = self.generate_caption(pil_image)
        except Exception:
            errors.report("Error interrogating", exc_info=True)
            text = "<error>"
        self.unload()
        shared.state.end()
        return text
