"""The routes of the page and of scripts, and the door in front of them."""

from __future__ import annotations

import base64
import io
from contextlib import closing
from pathlib import Path

import pytest
from conftest import until
from PIL import Image
from tool_files import lora

from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs
from lib_tuner.runs import details
from lib_tuner.toolbox import OwnFolders, Toolbox

testclient = pytest.importorskip("fastapi.testclient")

from lib_tuner.web.answers import file_answer  # noqa: E402
from lib_tuner.web.auth import Door, parse_login  # noqa: E402
from lib_tuner.web.routes import make_app  # noqa: E402

OURS = {"X-Tuner": "1"}


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path / "out", Standalone)
    yield jobs
    jobs.close()


@pytest.fixture
def client(jobs):
    with closing(Toolbox(OwnFolders(jobs.home), jobs.home, jobs.outputs)) as tools:
        yield testclient.TestClient(make_app(jobs, [], tools), base_url="http://127.0.0.1")


@pytest.fixture
def done(jobs, small_run):
    """A finished run: its id."""
    entry = jobs.add({**small_run, "steps": 2, "save_every": 0, "sample.every": 2, "sample.prompts": "a", "sample.steps": 1})
    until(lambda: entry.state == "done")
    return jobs.history()[0]["id"]


def test_the_status_and_the_history_are_json(client, done):
    now = client.get("/tuner/api/status").json()["now"]
    assert (now["state"], now["run"]) == ("done", done) and len(now["points"]) == 2
    assert client.get("/tuner/api/status", params={"part": now["part"], "points": 2}).json()["now"]["points"] == []
    assert [row["id"] for row in client.get("/tuner/api/runs").json()] == [done]
    assert client.get(f"/tuner/api/runs/{done}").json()["settings"]["lora.rank"] == 2


def test_a_picture_whose_name_is_no_text_is_trained_on_and_shown(client, jobs, small_run, tmp_path, unreadable_name):
    name = unreadable_name(tmp_path / "pictures" / "0.png")
    name.with_suffix(".txt").write_bytes(b"")  # so that a warning has the name in it
    entry = jobs.add({**small_run, "steps": 1, "save_every": 0})
    until(lambda: entry.state in ("done", "failed"))
    now = client.get("/tuner/api/status").json()["now"]
    assert now["state"] == "done" and any(name.name in warning for warning in now["warnings"])
    assert client.get("/tuner/api/runs").status_code == 200
    shown = [client.get(f"/tuner/api/runs/{now['run']}/training/{i}") for i in now["training"]]
    assert [answer.status_code for answer in shown] == [200] * 4 and any("0%20caf%3F" in answer.headers["content-disposition"] for answer in shown)


def test_a_name_that_is_no_text_is_downloaded_under_one_that_is(unreadable_name, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"zip")
    assert file_answer(unreadable_name(tmp_path / "a.zip")).headers["content-disposition"] == "attachment; filename*=utf-8''0%20caf_.zip"
    assert file_answer(tmp_path / "a.zip", "b\udce9.zip").headers["content-disposition"] == 'attachment; filename="b_.zip"'


def test_files_are_downloaded_and_pictures_shown_small(client, done, jobs):
    file = client.get(f"/tuner/api/runs/{done}/files/thing.safetensors")
    assert file.content == (jobs.folder_of(done) / "thing.safetensors").read_bytes() and "thing.safetensors" in file.headers["content-disposition"]
    small = Image.open(io.BytesIO(client.get(f"/tuner/api/runs/{done}/files/samples/000002-0.png", params={"size": 16}).content))
    training = Image.open(io.BytesIO(client.get(f"/tuner/api/runs/{done}/training/0", params={"size": 32}).content))
    assert (small.size, training.size) == ((16, 16), (32, 32))
    assert client.get(f"/tuner/api/runs/{done}/training/99").status_code == 404
    assert client.get(f"/tuner/api/runs/{done}/files/thing.safetensors", params={"size": 16}).status_code == 404


def test_an_output_folder_that_cannot_be_read_is_one_sentence(client, monkeypatch, jobs):
    def iterdir(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    for address in ("runs", "tools/files"):
        answer = client.get(f"/tuner/api/{address}")
        assert answer.status_code == 400 and "Permission denied" in answer.json()["error"]


@pytest.mark.parametrize("name", ["../../queue.json", "..%2f..%2fqueue.json", "%2e%2e/%2e%2e/queue.json", "/etc/passwd"])
def test_no_address_leads_out_of_a_run(client, done, name):
    answer = client.get(f"/tuner/api/runs/{done}/files/{name}")
    assert answer.status_code in (400, 404) and b"entries" not in answer.content


def test_what_changes_something_needs_our_own_header(client, done):
    refused = client.post(f"/tuner/api/runs/{done}/note", json={"text": "x"})
    assert refused.status_code == 403 and client.get("/tuner/api/runs").json()[0]["notes"] == ""
    assert client.post(f"/tuner/api/runs/{done}/note", json={"text": "x"}, headers=OURS).status_code == 200
    assert client.get("/tuner/api/runs").json()[0]["notes"] == "x"


def test_a_refusal_is_one_sentence(client, done):
    for path, body, words in (
        ("do/pause", {}, "No run is going"), ("do/resume", {"id": "none"}, "no longer in the queue"), (f"runs/{done}/rename", {"name": "thing.safetensors", "to": "../x"}, "cannot be"),
        (f"runs/{done}/delete-file", {"name": "nothing"}, "has no file"),
    ):  # fmt: skip
        answer = client.post(f"/tuner/api/{path}", json=body, headers=OURS)
        assert answer.status_code == 400 and words in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert client.post("/tuner/api/do/fly", headers=OURS).status_code == 422
    assert client.get("/tuner/api/runs/0123456789ab").json()["error"] == "That run's folder is gone."


def test_runs_are_renamed_and_deleted(client, done, jobs):
    folder = jobs.folder_of(done)
    assert client.post(f"/tuner/api/runs/{done}/rename", json={"name": "thing.safetensors", "to": "best"}, headers=OURS).json() == {"answer": "best.safetensors"}
    assert details(folder)["files"][0]["name"] == "best.safetensors"
    client.post(f"/tuner/api/runs/{done}/delete", headers=OURS)
    assert not folder.exists() and client.get("/tuner/api/runs").json() == []


def test_the_queue_is_ordered_by_routes(client, jobs, small_run):
    jobs.hold_queue()
    first = jobs.add({**small_run, "steps": 1, "name": "a", "data.folder": "nowhere"})
    jobs.hold_queue()
    second = jobs.add({**small_run, "steps": 1, "name": "b", "data.folder": "nowhere"})
    assert client.post("/tuner/api/do/remove", json={"id": second.id}, headers=OURS).status_code == 200
    client.post("/tuner/api/do/start", headers=OURS)
    until(lambda: first.state == "failed")
    assert [e["name"] for e in client.get("/tuner/api/status").json()["queue"]] == ["a"]


@pytest.mark.parametrize("key", ["data.folder", "checkpoint", "lora.start"])
def test_the_home_of_nobody_is_a_path_that_is_not_there(client, small_run, key):
    answer = client.post("/tuner/api/runs", json={"settings": {**small_run, key: "~nobody-here/x"}}, headers=OURS)
    assert answer.status_code == 400 and "~nobody-here/x" in answer.json()["error"]


def test_a_loss_that_is_no_number_silences_neither_status_nor_history(client, done, jobs):
    folder = jobs.folder_of(done)
    with (folder / "losses.csv").open("a") as file:
        file.write("3,nan,0.1,inf,1.0\n")
    jobs.live.points.append([3, None, 0.1])
    for path in ("status", "runs", f"runs/{done}"):
        assert client.get(f"/tuner/api/{path}").status_code == 200


def test_bodies_and_sizes_of_another_kind_are_refused_not_a_fault(client, done, jobs):
    assert client.post("/tuner/api/do/move", json={"id": jobs.entries[0].id, "by": "1"}, headers=OURS).status_code == 400
    assert client.post("/tuner/api/do/move", json=[1], headers=OURS).status_code == 422
    for size in ("0", "-5", "99999", "x"):
        assert client.get(f"/tuner/api/runs/{done}/training/0", params={"size": size}).status_code == 422


# ---- the door


@pytest.mark.parametrize(("origin", "code"), [("http://127.0.0.1:7870", 200), ("http://evil.example", 403), ("http://127.0.0.1:9999", 403), ("null", 403)])
def test_other_sites_pages_are_refused(origin, code):
    assert behind(None, origin=origin).status_code == code
    assert behind(("ann", "secret"), origin=origin, **basic("ann:secret")).status_code == code


def behind(login, host="127.0.0.1:7870", **headers):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    return testclient.TestClient(Door(app, login), base_url="http://127.0.0.1").get("/tuner/api/status", headers={"host": host, **headers})


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(("host", "code"), [("127.0.0.1:7870", 200), ("localhost:7870", 200), ("[::1]:7870", 200), ("localhost", 200), ("evil.example:7870", 403), ("127.0.0.1.evil.example", 403), ("", 403)])
def test_without_a_login_only_this_machines_names_are_answered(host, code):
    assert behind(None, host).status_code == code


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, 401), (basic("ann:secret"), 200), (basic("ann:wrong"), 401), (basic("ann"), 401), (basic(":"), 401), ({"Authorization": "Basic !!!"}, 401), ({"Authorization": "Bearer x"}, 401), (basic("ann:secret "), 401)],
)
def test_with_a_login_whoever_knows_it_is_let_in_from_anywhere(headers, code):
    answer = behind(("ann", "secret"), "tuner.example", **headers)
    assert answer.status_code == code and (code == 200 or "Basic" in answer.headers["www-authenticate"])


def test_a_password_may_hold_a_colon_and_letters_of_any_language():
    assert parse_login("ann:a:b") == ("ann", "a:b") and behind(("安", "密:码"), **basic("安:密:码")).status_code == 200
    for text in ("ann", ":x", "ann:", ""):
        with pytest.raises(ValueError, match="user:password"):
            parse_login(text)


def test_a_script_starts_a_run_in_the_programs_own_folder(client, jobs, small_run):
    flat = {key: value for key, value in small_run.items() if key != "output"}
    nested = {**{key: value for key, value in flat.items() if not key.startswith("data.")}, "data": {key[5:]: value for key, value in flat.items() if key.startswith("data.")}}
    answer = client.post("/tuner/api/runs", json={"settings": nested}, headers=OURS)
    assert answer.status_code == 200 and until(lambda: jobs.status()["queue"][-1]["state"] == "done")
    assert jobs.folder_of(client.get("/tuner/api/runs").json()[0]["id"]).parent == jobs.home
    for wrong, words in (({"steps": -1}, "steps: -1"), ({"stepps": 1}, "did you mean steps"), ({"data.folder": ""}, "data.folder: is empty")):
        refused = client.post("/tuner/api/runs", json={"settings": {**flat, **wrong}}, headers=OURS)
        assert refused.status_code == 400 and words in refused.json()["error"]


def test_what_the_openapi_page_promises_is_what_is_answered(client, done):
    """Every field of the described answers is there, and none is missing from the description."""
    page = client.get("/tuner/openapi.json").json()
    for path, name, pick in (("status", "Status", lambda a: a), ("runs", "RunRow", lambda a: a[0]), (f"runs/{done}", "RunDetails", lambda a: a)):
        assert pick(client.get(f"/tuner/api/{path}").json()).keys() == page["components"]["schemas"][name]["properties"].keys(), name
    actions = {parameter["schema"]["enum"][0] for method in page["paths"]["/tuner/api/do/{action}"].values() for parameter in method["parameters"]}
    assert actions == {"pause"}


# ---- the tools


def worked(client) -> dict:
    return until(lambda: (job := client.get("/tuner/api/tools/job").json()["job"]) and job["state"] not in ("running", "stopping") and job)


def test_a_script_joins_loras_and_downloads_what_came_of_it(client, jobs):
    assert client.get("/tuner/api/tools/job").json() == {"job": None}
    for i, name in enumerate("ab"):
        (jobs.home / "tools").mkdir(exist_ok=True)
        lora(jobs.home / "tools" / f"{name}.safetensors", seed=i)
    assert {"a.safetensors", "b.safetensors"} <= {file["name"] for file in client.get("/tuner/api/tools/files").json() if file["kind"] == "lora"}
    values = {"values": {"loras": [{"file": "a.safetensors"}, {"file": "b.safetensors", "weight": 0.5}], "rank": 4}}
    assert client.post("/tuner/api/tools/join-loras/check", json=values, headers=OURS).json()["out"] == "a-b.safetensors"
    id = client.post("/tuner/api/tools/join-loras/start", json=values, headers=OURS).json()["id"]
    job = worked(client)
    assert (job["id"], job["state"], job["files"][0]["path"]) == (id, "done", str(jobs.home / "tools" / "a-b.safetensors"))
    file = client.get("/tuner/api/tools/job/files/0")
    assert file.content == (jobs.home / "tools" / "a-b.safetensors").read_bytes() and "a-b.safetensors" in file.headers["content-disposition"]
    for index in ("1", "-1", "..%2f..%2fqueue.json"):  # nothing else is handed out
        assert client.get(f"/tuner/api/tools/job/files/{index}").status_code in (404, 422)
    kept = client.post("/tuner/api/tools/recipes/save", json={"name": "both", "loras": values["values"]["loras"]}, headers=OURS).json()["answer"]
    rows = client.post("/tuner/api/tools/recipes/read", json={"file": "both.toml"}, headers=OURS).json()["answer"]
    assert Path(kept) == jobs.home / "recipes" / "both.toml" and [row["unet"] for row in rows] == [1.0, 0.5]


def test_a_tool_is_refused_in_sentences_and_without_our_header(client, jobs):
    for path in ("tools/join-loras/start", "tools/join-loras/check", "tools/job/stop", "tools/recipes/read", "tools/recipes/save"):
        assert client.post(f"/tuner/api/{path}", json={}).status_code == 403
    for path, body, words in (
        ("tools/join-loras/start", {"values": {}}, "loras: no LoRA is given"), ("tools/resize/start", {"values": {"lora": "none", "rank": 0}}, "lora: none does not exist"),
        ("tools/none/start", {"values": {}}, "There is no tool 'none'"), ("tools/job/stop", {}, "No tool is at work"), ("tools/recipes/read", {"file": "none.toml"}, "cannot be read"),
        ("tools/recipes/save", {"name": "../x", "loras": []}, "cannot be"),
    ):  # fmt: skip
        answer = client.post(f"/tuner/api/{path}", json=body, headers=OURS)
        assert answer.status_code == 400 and words in answer.json()["error"], (path, answer.json())
    assert client.post("/tuner/api/tools/resize/start", json={"values": [1]}, headers=OURS).status_code == 422


def test_what_the_openapi_page_promises_of_tools_is_what_is_answered(client, jobs):
    schemas = client.get("/tuner/openapi.json").json()["components"]["schemas"]
    (jobs.home / "tools").mkdir()
    lora(jobs.home / "tools" / "a.safetensors")
    client.post("/tuner/api/tools/inspect/start", json={"values": {"file": "a.safetensors"}}, headers=OURS)
    forms, file = client.get("/tuner/api/tools").json(), client.get("/tuner/api/tools/files").json()[0]
    checked = client.post("/tuner/api/tools/inspect/check", json={"values": {}}, headers=OURS).json()
    for answer, name in ((forms[0], "ToolForm"), (forms[0]["fields"][0], "Field_"), (file, "KnownFile"), (checked, "Checked"), (worked(client), "ToolJob")):
        assert answer.keys() == schemas[name]["properties"].keys(), name
