"""`test --webui DIR`: starts that WebUI on the embedded model, in a data folder of its own, and tries the Tuner inside it.

The contract of hosts and the traps run in the WebUI's own process (tests/inside_webui.py, which a throw-away extension starts), then the tab is clicked
through in a real browser. Nothing is written into the WebUI's folder but what it writes there itself at any start.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environment import ROOT

FLAGS = ("--skip-torch-cuda-test", "--skip-prepare-environment", "--skip-version-check", "--no-download-sd-model", "--do-not-download-clip", "--api", "--no-half", "--use-cpu", "all")
READY = ("Startup time:", "Model loaded in")  # a request before both can kill it
START, SUITE = 600.0, 3600.0  # seconds after which a start or the suite is given up
SCRIPT = """import sys
sys.path[:0] = {paths!r}
import inside_webui
inside_webui.register({result!r}, {arguments!r}, {paths!r})
"""


def main(webui: Path, python: str, rest: list[str], pytest) -> int:
    """The exit code: 0 where both parts passed. `pytest`: runs the browser's part with these arguments. Raises ValueError for a folder that is no WebUI."""
    webui = webui.expanduser().resolve()
    if not (webui / "launch.py").is_file() or not (webui / "modules" / "sd_models.py").is_file():
        raise ValueError(f"--webui: {webui} is no folder of AUTOMATIC1111's WebUI: it has no launch.py and modules.")
    python = python or _python_of(webui)
    with tempfile.TemporaryDirectory(prefix="tuner-webui-") as folder:
        data, result = Path(folder) / "data", Path(folder) / "result.json"
        _lay_out(data, python, result, rest)
        with started(webui, python, data) as url:
            inside = _wait_for(result)
            start = ", ".join(f"{what} {seconds:.3f} s" for what, seconds in inside["start"].items())
            sys.stderr.write(f"{inside['text']}\nInside {inside['versions']}; of the WebUI's start the Tuner took: {start}\n")
            os.environ["TUNER_WEBUI_URL"], os.environ["TUNER_WEBUI_DATA"] = url, str(data)
            outside = pytest([str(ROOT / "tests" / "test_webui_page.py"), "-q"])
    return int(bool(inside["code"] or outside))


def _python_of(webui: Path) -> str:
    """The Python that the WebUI's own start script uses."""
    found = next((path for path in (webui / "venv" / "bin" / "python", webui / "venv" / "Scripts" / "python.exe") if path.exists()), None)
    if found is None:
        raise ValueError(f"{webui} has no venv: start the WebUI once, or name its Python with --webui-python.")
    return str(found)


def _lay_out(data: Path, python: str, result: Path, arguments: list[str]) -> None:
    """Models, our extension as a link, and the extension that runs the tests."""
    models = data / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    _models(models)
    packages = data.parent / "packages"  # the WebUI's environment stays as it is
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(packages), "pytest"], check=True, stdout=sys.stderr)
    (data / "extensions").mkdir()
    (data / "extensions" / "tuner").symlink_to(ROOT, target_is_directory=True)
    suite = data / "extensions" / "0-tuner-suite" / "scripts"  # loaded before ours
    suite.mkdir(parents=True)
    paths = [str(ROOT / "tests"), str(ROOT), str(packages)]
    (suite / "suite.py").write_text(SCRIPT.format(paths=paths, result=str(result), arguments=arguments), encoding="utf-8")


def _models(folder: Path) -> None:
    """The embedded model, and others to switch to: the same with a changed first layer, and as an inpainting model."""
    from .hosts.standalone import EMBEDDED
    from .sd.files import read_tensors, write_tensors
    from .sd.inpaint import INPUTS
    from .tools.export_tiny import export

    file, yaml, _ = export(EMBEDDED, folder)
    tensors, metadata = read_tensors(file)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    first = tensors[key]
    write_tensors(folder / "other.safetensors", {**tensors, key: first * 1.01}, metadata)
    shutil.copyfile(yaml, folder / "other.yaml")
    nine = folder / "tiny-inpainting.safetensors"
    wide = first.new_zeros(len(first), INPUTS, *first.shape[2:])  # (C, 9, 3, 3), which does not look at what is new
    wide[:, : first.shape[1]] = first
    write_tensors(nine, {**tensors, key: wide}, metadata)
    export(nine, folder)


@contextmanager
def started(webui: Path, python: str, data: Path, flags: tuple[str, ...] = FLAGS) -> Iterator[str]:
    """The WebUI, ready, at its address; its log goes to stderr where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = data.parent / "webui.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": "",
                   "HF_HUB_OFFLINE": "1", "TUNER_INSIDE_WEBUI": "1"}  # fmt: skip
    with log.open("w") as out:
        command = [python, "launch.py", *flags, "--data-dir", str(data), "--port", str(port), "--ckpt", str(data / "models" / "Stable-diffusion" / "tiny-sd15.safetensors")]
        process = subprocess.Popen(command, cwd=webui, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START
        while not all(sign in log.read_text(errors="replace") for sign in READY):
            if process.poll() is not None or time.monotonic() > end:
                sys.stderr.write(log.read_text(errors="replace")[-8000:])
                raise ValueError(f"The WebUI in {webui} did not start; its log is above.")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(result: Path) -> dict:
    end = time.monotonic() + SUITE
    while not result.is_file():
        if time.monotonic() > end:
            raise ValueError(f"The suite inside the WebUI did not end within {SUITE:.0f} s; its log is beside {result}.")
        time.sleep(0.2)
    return json.loads(result.read_text(encoding="utf-8"))
