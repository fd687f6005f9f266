"""Models by name: fetched once from a hub (here a small server), recorded and checked; or one's own files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lib_tuner.data import tag_models
from lib_tuner.data.tag_models import MODELS, Cancelled, find
from lib_tuner.data.tag_rules import Thresholds

NAME = "wd-vit-tagger-v3"
CSV = b"tag_id,name,category,count\n0,general,9,1\n1,solo,0,1\n"
MODEL = b"\x08\x07" + bytes(range(256)) * 3000


class Hub:
    """Answers by path: (status, headers, body); where a body is shorter than its Content-Length the connection ends early. `asked` in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                status, headers, body = hub.answers.get(self.path, (404, {}, b"no such file"))
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def has(self, file: str, body: bytes, status: int = 200, revision: str = "main", **headers: str) -> None:
        self.answers[f"/SmilingWolf/{NAME}/resolve/{revision}/{file}"] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    hub.has("selected_tags.csv", CSV)
    hub.has("model.onnx", MODEL)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def whole(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_fetched_once_and_recorded_as_sha256sum_reads_it(hub, tmp_path):
    told = []
    files = find(NAME, tmp_path, lambda *what: told.append(what))
    place = tmp_path / NAME / "main"
    digest = hashlib.sha256(MODEL).hexdigest()
    assert files.model == place / "model.onnx" and files.model.read_bytes() == MODEL and files.tags.read_bytes() == CSV
    assert (place / "SHA256SUMS").read_text() == f"{digest}  model.onnx\n{hashlib.sha256(CSV).hexdigest()}  selected_tags.csv\n"
    assert files.sha256 == digest and files.thresholds == MODELS[NAME] and len(hub.asked) == 2
    assert told[-1] == ("model.onnx", len(MODEL), len(MODEL)) and [done for file, done, _ in told if file == "model.onnx"] == sorted(done for file, done, _ in told if file == "model.onnx")
    hub.server.shutdown()  # and from then on nobody is asked
    assert find(NAME, tmp_path) == files and len(hub.asked) == 2 and sorted(whole(tmp_path)) == ["SHA256SUMS", "model.onnx", "selected_tags.csv"]


def test_a_revision_has_a_place_of_its_own(hub, tmp_path):
    hub.has("selected_tags.csv", CSV, revision="v2.0")
    hub.has("model.onnx", MODEL + b"2", revision="v2.0")
    assert find(f"{NAME}@v2.0", tmp_path).model.read_bytes() == MODEL + b"2" and find(NAME, tmp_path).model.read_bytes() == MODEL


def test_a_large_file_lies_elsewhere_and_the_hub_says_its_hash(hub, tmp_path):
    hub.answers["/lfs"] = (200, {}, MODEL)
    hub.has("model.onnx", b"", 302, Location="/lfs", X_Linked_Etag=f'"{hashlib.sha256(MODEL).hexdigest()}"')
    assert find(NAME, tmp_path).model.read_bytes() == MODEL
    hub.answers["/lfs"] = (200, {}, MODEL[:-1] + b"x")
    with pytest.raises(OSError, match="not what the hub announced"):
        find(NAME, tmp_path / "again")
    assert "model.onnx" not in whole(tmp_path / "again")


@pytest.mark.parametrize(("answer", "said"), [
    ((200, {"Content-Type": "text/html; charset=utf-8"}, MODEL), "a page instead of the file"), ((200, {}, b"<!doctype html>" + b" " * 5000), "a message, not the file"),
    ((200, {}, b"version https://git-lfs.github.com/spec/v1\n" + b" " * 5000), "a message, not the file"), ((200, {}, b"busy"), "a message, not the file"),
    ((404, {}, b"Entry not found"), "it answers 404"), ((503, {}, b""), "it answers 503"), ((200, {"Content-Length": str(len(MODEL) + 9)}, MODEL), "of 768,01"),
    ((200, {}, b""), "a message"), ((302, {"Location": "/nowhere"}, b""), "404"),
])  # fmt: skip
def test_what_is_no_model_is_not_kept(hub, tmp_path, answer, said):
    hub.answers[f"/SmilingWolf/{NAME}/resolve/main/model.onnx"] = answer
    with pytest.raises(OSError, match=said) as error:
        find(NAME, tmp_path)
    assert "model.onnx cannot be fetched from http" in str(error.value) and "\n" not in str(error.value)
    assert set(whole(tmp_path)) == {"selected_tags.csv", "SHA256SUMS"}  # which was whole, and is not asked for again
    hub.has("model.onnx", MODEL)
    assert find(NAME, tmp_path).model.read_bytes() == MODEL and sum(path.endswith(".csv") for path in hub.asked) == 1


def test_what_is_no_list_is_not_kept(hub, tmp_path):
    hub.has("selected_tags.csv", b"Access to model is restricted")
    with pytest.raises(OSError, match="no list of tags"):
        find(NAME, tmp_path)
    assert whole(tmp_path) == {}


def test_a_hub_that_is_not_there_is_one_sentence(hub, tmp_path):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(OSError, match=r"selected_tags.csv cannot be fetched from http.*refused.*name that folder as the model"):
        find(NAME, tmp_path)


def test_a_stopped_download_leaves_nothing_half(hub, tmp_path):
    seen = []
    with pytest.raises(Cancelled, match="was stopped"):
        find(NAME, tmp_path, lambda *what: seen.append(what), stop=lambda: len(seen) > 1)
    assert set(whole(tmp_path)) == {"selected_tags.csv", "SHA256SUMS"}


def test_a_file_that_changed_is_refused_until_it_is_deleted(hub, tmp_path):
    files = find(NAME, tmp_path)
    files.model.write_bytes(MODEL + b"?")
    with pytest.raises(ValueError, match=r"model.onnx is no longer the file that was downloaded \(sha256 .*delete it"):
        find(NAME, tmp_path)
    files.model.unlink()
    assert find(NAME, tmp_path).model.read_bytes() == MODEL


def test_ones_own_files_need_no_hub(tmp_path):
    (tmp_path / "wd-eva02-large-tagger-v3").mkdir()
    for name in ("model.onnx", "selected_tags.csv"):
        (tmp_path / "wd-eva02-large-tagger-v3" / name).write_bytes(CSV)
    files = find(str(tmp_path / "wd-eva02-large-tagger-v3"), tmp_path / "none")
    assert files.thresholds.general == 0.5296 and files.sha256 == "" and find(str(files.model), tmp_path) == files
    (tmp_path / "mine.onnx").write_bytes(MODEL)
    with pytest.raises(ValueError, match="mine.onnx has no list of tags beside it"):
        find(str(tmp_path / "mine.onnx"), tmp_path)
    (tmp_path / "mine.csv").write_bytes(CSV)
    assert find(str(tmp_path / "mine.onnx"), tmp_path).thresholds == Thresholds() and find(str(tmp_path / "mine.onnx"), tmp_path).tags.name == "mine.csv"


@pytest.mark.parametrize(("name", "said"), [
    ("wd-vit-tager-v3", "did you mean wd-vit-tagger-v3"), ("x.onnx", "x.onnx does not exist"), (f"{NAME}@../../x", "is no revision"), (f"{NAME}@..", "is no revision"),
])  # fmt: skip
def test_a_name_that_there_is_not_is_one_sentence(tmp_path, name, said):
    with pytest.raises(ValueError, match=said):
        find(name, tmp_path)


def test_every_model_has_its_own_threshold_and_those_without_a_source_the_usual():
    assert len(MODELS) == 12 and {name for name, thresholds in MODELS.items() if not thresholds.source} == {"wd-v1-4-vit-tagger", "wd-v1-4-convnext-tagger", "wd-vit-large-tagger-v3"}
    assert all(thresholds.general == 0.35 for thresholds in MODELS.values() if not thresholds.source)
    assert tag_models.HUB == "https://huggingface.co"
