"""Puts the probes to a real WebUI and keeps its answers: python tests/webui_double/record.py --webui FOLDER --python ITS_PYTHON

Run it with the project's own Python, from anywhere. The WebUI gets a data folder of its own, which is deleted afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = ("--skip-prepare-environment --skip-torch-cuda-test --no-half --use-cpu all --skip-version-check --no-download-sd-model --do-not-download-clip").split()


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--webui", type=Path, required=True, help="the folder of a WebUI")
    parser.add_argument("--python", type=Path, required=True, help="the Python that it runs with")
    parser.add_argument("--port", default="7871")
    parser.add_argument("--only", default="", help="names of probes, by commas; their answers alone are replaced")
    parser.add_argument("--log", type=Path, help="keeps what the WebUI says")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="webui-probes-") as folder:
        prepare(Path(folder))
        code = run(options, Path(folder))
        found = Path(folder) / "answers.json"
        if not found.exists():
            failed = Path(folder) / "failed.txt"
            sys.exit(f"The WebUI ended ({code}) without answers. {failed.read_text(encoding='utf-8') if failed.exists() else 'See --log.'}")
        keep(options, json.loads(found.read_text(encoding="utf-8")))


def prepare(folder: Path) -> None:
    """The data folder: three small checkpoints, the second with a config of its own, and the extension that asks."""
    sys.path[:0] = [str(ROOT), str(HERE.parent)]
    from lib_tuner.tools.export_tiny import export
    from webui_double.core.weights import put_small

    models = folder / "data" / "models" / "Stable-diffusion"
    for seed, name in enumerate(("first", "second", "third"), start=1):
        put_small(models / f"{name}.safetensors", seed)
    _, config, _ = export(models / "first.safetensors", folder / "config")
    shutil.copyfile(config, models / "second.yaml")
    extension = folder / "data" / "extensions" / "probes"
    shutil.copytree(HERE / "probe_extension", extension, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(HERE / "recording.py", extension / "scripts" / "zz_ask.py")


def run(options: argparse.Namespace, folder: Path) -> int:
    """Starts the WebUI and waits for its end."""
    own = {
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "PROBES_CONFIG": str(folder / "config" / "first.yaml"), "PROBES_PATH": os.pathsep.join((str(ROOT), str(HERE.parent))), "PROBES_FOLDER": str(folder),
    }  # fmt: skip
    if options.only:
        own["PROBES_ONLY"] = options.only
    command = [str(options.python), "-u", "launch.py", *FLAGS, "--data-dir", str(folder / "data"), "--port", options.port]
    with open(options.log or os.devnull, "w", encoding="utf-8") as log:
        return subprocess.run(
            command, cwd=options.webui, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=1800
        ).returncode


def keep(options: argparse.Namespace, found: dict) -> None:
    """Writes the answers with what they were got from."""
    git = ["git", "-C", str(options.webui)]
    commit = subprocess.run([*git, "rev-parse", "--short=8", "HEAD"], capture_output=True, text=True).stdout.strip()
    tag = (options.webui / "CHANGELOG.md").read_text(encoding="utf-8").split()[1]  # "## 1.9.4"
    path = HERE / f"recorded-{tag}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["answers"] if options.only and path.exists() else {}
    answers = dict(sorted({**before, **found["answers"]}.items()))
    content = {"webui": tag, "commit": commit, "date": datetime.date.today().isoformat(), "versions": found["versions"], "answers": answers}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
