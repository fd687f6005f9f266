"""The routes of the data-set panel: what they show and do, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from conftest import until
from PIL import Image

from lib_tuner import datasets
from lib_tuner.data.edits import Edit
from lib_tuner.data.journal import Journal
from lib_tuner.datasets import Datasets, Scope
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs

testclient = pytest.importorskip("fastapi.testclient")

from lib_tuner.web.limits import LARGEST  # noqa: E402
from lib_tuner.web.routes import make_app  # noqa: E402

OURS = {"X-Tuner": "1"}
CAPTIONS = {"a.png": "cat, lips", "b.png": "cat, long hair", "c.png": None}


@pytest.fixture
def folder(tmp_path):
    below = tmp_path / "set"
    below.mkdir()
    for name, caption in CAPTIONS.items():
        Image.new("RGB", (300, 200), (200, 30, 30)).save(below / name)
        if caption is not None:
            (below / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return below


class Client:
    """An open folder through the routes."""

    def __init__(self, web, folder):
        self.web = web
        self.about = self.ok(web.post("/tuner/api/data/open", json={"folder": str(folder)}, headers=OURS))
        self.id = self.about["id"]

    @staticmethod
    def ok(answer):
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path):
        return self.web.get(f"/tuner/api/data/{self.id}/{path}")

    def post(self, path, **body):
        return self.web.post(f"/tuner/api/data/{self.id}/{path}", content=json.dumps(body), headers={**OURS, "Content-Type": "application/json"})

    def names(self, filter=""):
        rows = self.ok(self.web.get(f"/tuner/api/data/{self.id}/rows", params={"filter": filter}))["rows"]
        return [row["name"] for row in self.ok(self.post("details", rows=rows))]


@pytest.fixture
def web(tmp_path):
    with closing(Jobs(tmp_path / "out", Standalone)) as jobs, closing(Datasets()) as sets:
        yield testclient.TestClient(make_app(jobs, [], sets=sets), base_url="http://127.0.0.1")


@pytest.fixture
def sets():
    with closing(Datasets()) as made:
        yield made


@pytest.fixture
def client(web, folder):
    return Client(web, folder)


def test_a_folder_is_opened_once(web, client, folder):
    assert client.about["pictures"] == 3 and client.about["editable"] and client.about["undo"] is None
    assert Client(web, f'"{folder}" ').id == client.id  # as Windows copies a path
    assert client.names() == ["a.png", "b.png", "c.png"] and client.names("cat, NOT lips") == ["b.png"] and client.names("untagged") == ["c.png"]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("foo:bar", "There is no condition 'foo' (there are name: path: text: tag: tags: "), ("cat, Name:*.png", "There is no condition 'Name'"),
        ("problem:blurred", "Nothing was checked yet"), ("problem:small", ""), ("score:lips>0.5", "No tagger has seen these pictures"), ("tags:>99", ""), ("nothing", ""), (":d", ""), ("12:30", ""),
        ("re:one, hat", ""),
    ],
)  # fmt: skip
def test_why_a_filter_names_nothing(client, folder, line, hint):
    (folder / "c.txt").write_text("re:zero", encoding="utf-8")
    client.ok(client.post("read"))
    found = client.ok(client.web.get(f"/tuner/api/data/{client.id}/rows", params={"filter": line}))
    assert found["rows"] == [] and " ".join(found["hints"]).startswith(hint) and bool(found["hints"]) == bool(hint)


def test_details_are_what_a_cell_shows(client):
    row = client.ok(client.post("details", rows=[0, 99]))
    assert [(r["name"], r["place"], r["tags"], r["text"], r["tokens"], r["is_text"]) for r in row] == [("a.png", "a.png", ["cat", "lips"], "cat, lips", 3, False)]


def test_pictures_whose_names_are_no_text_are_listed_shown_and_edited(web, folder, unreadable_name):
    name = unreadable_name(folder / "a.png").with_suffix(".txt")
    (folder / "a.txt").rename(name)
    client = Client(web, folder)
    assert client.names("lips") == [name.with_suffix(".png").name]
    row = client.ok(client.get("rows?filter=lips"))["rows"][0]
    assert client.get(f"pictures/{row}").status_code == 200
    client.ok(client.post("edit", name="remove", args={"tags": "lips"}))
    assert name.read_text() == "cat" and client.ok(client.get("history"))[0]["files"] == 1


def test_tags_are_counted_among_what_is_filtered(client):
    assert client.ok(client.get("tags"))["tags"] == [["cat", 2], ["lips", 1], ["long hair", 1]]
    assert client.ok(client.get("tags?filter=lips"))["tags"] == [["cat", 1], ["lips", 1]]
    assert client.ok(client.get("tags?like=LONG_"))["tags"] == [["long hair", 1]]
    limited = client.ok(client.get("tags?limit=1"))
    assert limited["tags"] == [["cat", 2]] and limited["distinct"] == 3


def test_a_preview_writes_nothing_and_is_carried_out_once(client, folder):
    seen = client.ok(client.post("plan", name="remove", args={"tags": "lips"}))
    assert (seen["changes"], seen["total"], seen["samples"]) == (1, 3, [{"name": "a.txt", "before": "cat, lips", "after": "cat"}])
    assert (folder / "a.txt").read_text() == "cat, lips"
    done = client.ok(client.post("apply", plan=seen["plan"]))
    assert done["entry"]["files"] == 1 and done["undo"]["edit"] == "remove" and done["version"] == 1
    assert (folder / "a.txt").read_text() == "cat"
    again = client.post("apply", plan=seen["plan"])
    assert again.status_code == 400 and again.json()["error"] == "That preview is too old; look at it anew."
    assert client.ok(client.post("undo"))["redo"]["edit"] == "remove" and (folder / "a.txt").read_text() == "cat, lips"
    assert client.ok(client.post("redo"))["redo"] is None and (folder / "a.txt").read_text() == "cat"
    assert [entry["edit"] for entry in client.ok(client.get("history"))] == ["remove"]


def test_a_preview_of_what_has_changed_since_is_not_carried_out(client, folder):
    seen = client.ok(client.post("plan", name="remove", args={"tags": "lips"}))
    (folder / "a.txt").write_text("cat, lips, mine")
    refused = client.post("apply", plan=seen["plan"])
    assert refused.status_code == 400 and "changed on the disk" in refused.json()["error"] and (folder / "a.txt").read_text() == "cat, lips, mine"
    assert client.ok(client.post("read"))["pictures"] == 3 and client.names("mine") == ["a.png"]


@pytest.mark.parametrize(("scope", "changed"), [({}, "abc"), ({"filter": "cat"}, "ab"), ({"rows": [1, 2, 2, 77]}, "bc"), ({"rows": []}, "")])
def test_an_edit_is_for_whom_it_is_meant(client, folder, scope, changed):
    client.ok(client.post("edit", name="add", args={"tags": ["zwx"]}, **scope))
    assert "".join(path.stem for path in sorted(folder.glob("*.txt")) if "zwx" in path.read_text()) == changed


def test_a_caption_is_written_as_typed(client, folder):
    client.ok(client.post("edit", name="write", args={"text": "a cat, 猫"}, rows=[2]))
    assert (folder / "c.txt").read_text(encoding="utf-8") == "a cat, 猫"


def test_words_that_cannot_be_written_are_refused_and_not_forgotten(client, folder):
    (folder / "b.txt").write_bytes(b"caf\xe9, cat")  # neither UTF-8 nor able to hold other letters
    client.ok(client.post("read"))
    refused = client.post("edit", name="write", args={"text": "猫"}, rows=[1])
    assert refused.status_code == 400 and "cannot hold" in refused.json()["error"] and (folder / "b.txt").read_bytes() == b"caf\xe9, cat"
    gone = client.post("edit", name="write", args={"text": "x"}, rows=[77])
    assert gone.status_code == 400 and "not in the folder any more" in gone.json()["error"]


def test_a_caption_that_changed_since_it_was_seen_is_not_overwritten(client, folder):
    client.ok(client.post("edit", name="write", args={"text": "first"}, rows=[0], was="cat, lips"))
    refused = client.post("edit", name="write", args={"text": "second"}, rows=[0], was="cat, lips")
    assert refused.status_code == 400 and "changed elsewhere" in refused.json()["error"] and (folder / "a.txt").read_text() == "first"


def test_an_undo_that_would_leave_a_file_asks_first(client, folder):
    client.ok(client.post("edit", name="add", args={"tags": "zwx"}))
    (folder / "a.txt").write_text("typed elsewhere")
    asked = client.ok(client.post("undo", partly=False))
    assert asked["ask"] == "Changed since, so left as they are now: a.txt. Take back the rest (files: 2)?" and asked["undo"]["edit"] == "add" and asked["entry"] is None
    assert "zwx" in (folder / "b.txt").read_text()
    done = client.ok(client.post("undo", number=asked["undo"]["number"]))
    assert done["told"].endswith("a.txt; files taken back: 2.") and done["undo"] is None and done["redo"]["edit"] == "add" and "zwx" not in (folder / "b.txt").read_text()
    assert client.ok(client.post("details", rows=[0]))[0]["text"] == "typed elsewhere"  # the folder was read anew


def test_undo_takes_back_what_was_meant(client, folder):
    first = client.ok(client.post("edit", name="add", args={"tags": "one"}, rows=[0]))["undo"]["number"]
    client.ok(client.post("edit", name="add", args={"tags": "two"}, rows=[0]))
    refused = client.post("undo", number=first)
    assert refused.status_code == 400 and "done meanwhile" in refused.json()["error"] and (folder / "a.txt").read_text() == "cat, lips, one, two"
    assert client.ok(client.post("undo"))["redo"]["number"] == first + 1
    assert client.post("redo", number=first).status_code == 400 and client.ok(client.post("redo", number=first + 1))["redo"] is None


def test_letters_of_unknown_encodings_are_shown_and_written_back(client, folder):
    data = "猫、ねこ".encode("shift-jis")
    (folder / "a.txt").write_bytes(data)
    client.ok(client.post("read"))
    row = client.ok(client.post("details", rows=[0]))[0]
    client.ok(client.get("tags"))
    client.ok(client.web.post(f"/tuner/api/data/{client.id}/edit", content=json.dumps({"name": "write", "args": {"text": row["text"] + ", x"}, "rows": [0]}), headers={**OURS, "Content-Type": "application/json"}))
    assert (folder / "a.txt").read_bytes() == data + b", x"


@pytest.mark.parametrize("spelling", ["{0}/x/../set", "{0}/set/.", "{0}//set"])
def test_a_folder_has_one_name(web, client, folder, spelling):
    again = Client(web, spelling.format(folder.parent))
    assert again.id == client.id and again.names() == ["a.png", "b.png", "c.png"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_a_folder_that_is_opened_by_a_link_is_the_one_that_is_open(web, client, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    again = Client(web, tmp_path / "link")
    assert again.id == client.id and again.about["editable"]


@pytest.mark.parametrize("way", ["open", "read"])
def test_a_folder_that_another_program_held_can_be_edited_once_it_is_free(web, folder, way):
    with Journal(folder):
        client = Client(web, folder)
        assert not client.about["editable"] and "another program" in client.about["reason"]
        assert client.post("edit", name="add", args={"tags": "zwx"}).status_code == 400
    about = Client(web, folder).about if way == "open" else client.ok(client.post("read"))
    assert about["id"] == client.id and about["editable"] and about["reason"] == ""
    assert client.ok(client.post("edit", name="add", args={"tags": "zwx"}))["entry"]["files"] == 3


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_a_caption_that_leads_out_of_the_folder_is_neither_read_nor_written(web, tmp_path, folder):
    (tmp_path / "secret").write_text("export KEY")
    (folder / "c.txt").symlink_to(tmp_path / "secret")
    (folder / "inside.txt").write_text("cat")
    (folder / "inside.png").write_bytes((folder / "a.png").read_bytes())
    client = Client(web, folder)
    assert "c.txt is a link out of the folder and is left alone; put a copy in its place." in client.about["told"] and "c.png" not in client.names()
    client.ok(client.post("edit", name="add", args={"tags": "cat"}))
    assert (tmp_path / "secret").read_text() == "export KEY"


def test_a_folder_that_takes_long_to_read_keeps_nobody_waiting(web, client, folder, tmp_path, monkeypatch):
    other, begun, go = tmp_path / "large", threading.Event(), threading.Event()
    other.mkdir()
    Image.new("RGB", (20, 20)).save(other / "x.png")
    read = datasets.Library.open.__func__
    monkeypatch.setattr(datasets.Library, "open", classmethod(lambda cls, path: (begun.set(), go.wait(30), read(cls, path))[2]))
    opening = threading.Thread(target=lambda: web.post("/tuner/api/data/open", json={"folder": str(other)}, headers=OURS))
    opening.start()
    try:
        assert begun.wait(30) and client.names() == ["a.png", "b.png", "c.png"]
    finally:
        go.set()
        opening.join(30)
    assert Client(web, other).about["editable"]


def test_what_goes_into_the_trash_comes_back(client, folder):
    assert client.ok(client.post("delete", rows=[0]))["pictures"] == 2
    assert not (folder / "a.png").exists() and client.names() == ["b.png", "c.png"]
    assert client.ok(client.post("undo"))["pictures"] == 3 and (folder / "a.txt").read_text() == "cat, lips"


def test_pictures_are_shown_small(client, folder):
    answer = client.get("pictures/0?side=100")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(answer.content)).size == (128, 85)
    assert list((folder / ".tuner" / "thumbs").rglob("*")), "it is kept"
    assert client.get("pictures/99").status_code == 404 and client.get("pictures/x").status_code == 422 and client.get("pictures/..%2Fa.png").status_code in (404, 422)
    (folder / "b.png").write_bytes(b"broken")
    assert client.get("pictures/1").status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("plan", {"name": "explode"}, "There is no edit 'explode'"),
        ("plan", {"name": "remove", "args": {"tags": 3}}, "remove: tags is to be tags"),
        ("plan", {"name": "remove", "args": {"tags": "x"}, "filter": "(x"}, "is not closed"),
        ("edit", {"name": "regex", "args": {"pattern": "(", "text": ""}}, ""),
        ("edit", {"name": "above", "args": {"least": 1e999}}, "above: least is to be a number"),
        ("plan", {"name": "remove", "args": {"tags": "x"}, "filter": "(" * 3000}, "more than 100 parentheses"),
    ],
)
def test_what_cannot_be_is_one_sentence(client, path, body, said):
    answer = client.post(path, **body)
    assert answer.status_code == 400 and said in answer.json()["error"] and answer.json()["error"].endswith(".")


@pytest.mark.parametrize("folder", ["", "   ", "a\0b", "/no/such/folder"])
def test_a_folder_that_is_none_is_one_sentence(web, folder):
    answer = web.post("/tuner/api/data/open", json={"folder": folder}, headers=OURS)
    assert answer.status_code == 400 and answer.json()["error"].endswith(".")


def test_only_open_folders_are_there(web, client):
    assert web.get("/tuner/api/data/0123456789abcdef").status_code == 404
    client.ok(client.post("close"))
    assert "not open any more" in client.get("rows").json()["error"]


def test_other_sites_change_nothing(client):
    assert client.web.post(f"/tuner/api/data/{client.id}/edit", json={"name": "remove", "args": {"tags": "cat"}}).status_code == 403
    assert client.names("cat") == ["a.png", "b.png"]


def test_a_request_is_not_larger_than_it_may_be(client):
    body = json.dumps({"name": "write", "args": {"text": "x" * LARGEST}, "rows": [0]})
    answer = client.web.post(f"/tuner/api/data/{client.id}/edit", content=body, headers={**OURS, "Content-Type": "application/json"})
    assert answer.status_code == 413 and "MB" in answer.json()["error"]
    chunked = {**OURS, "Content-Type": "application/json", "Content-Length": "5", "Transfer-Encoding": "chunked"}
    assert client.web.post(f"/tuner/api/data/{client.id}/edit", content=b"{}", headers=chunked).status_code == 411
    answer = client.web.post(f"/tuner/api/data/{client.id}/edit", content=iter([b"{}"]), headers={**OURS, "Content-Type": "application/json"})
    assert answer.status_code == 411
    assert client.names("lips") == ["a.png"]


def test_the_folder_asked_for_longest_ago_is_closed(web, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "OPEN", 2)
    opened = []
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / name / "x.png")
        opened.append(Client(web, tmp_path / name))
    assert [client.get("rows").status_code for client in opened] == [404, 200, 200]
    assert Client(web, tmp_path / "a").about["editable"]  # its lock was let go


def test_all_edits_are_told(web):
    told = Client.ok(web.get("/tuner/api/data/edits"))
    assert {"name": "remove", "arguments": [{"name": "tags", "kind": "list"}]} in told and len(told) > 20


def test_the_routes_are_described(web):
    paths = web.get("/tuner/openapi.json").json()["paths"]
    ours = {path: way for path, way in paths.items() if path.startswith("/tuner/api/data")}
    assert len(ours) >= 14
    assert all(operation.get("summary") and operation["responses"]["200"].get("content") for way in ours.values() for operation in way.values())


# ---- how far writing is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["apply", "undo", "redo", "delete"])
def test_who_looks_while_files_are_written_reads_how_far_they_are(sets, folder, way):
    opened = sets.open(str(folder))
    plan = opened.plan(Edit("add", {"tags": "new"}), Scope())["plan"]
    steps = {"apply": (), "undo": ("apply",), "redo": ("apply", "undo"), "delete": ()}[way]
    act = {"apply": lambda: opened.apply(plan), "undo": opened.undo, "redo": opened.redo, "delete": lambda: opened.delete(Scope((0, 1)))}
    for step in steps:
        act[step]()
    seen, real = [], opened.library.journal._step

    def step(*args, **more):
        with ThreadPoolExecutor(1) as others:  # as another request, which does not wait for this one
            seen.append(others.submit(opened.work).result(5))
        real(*args, **more)

    opened.library.journal._step = step
    act[way]()
    count = len(seen)
    assert count > 1 and [(one["name"], one["state"], one["done"], one["stoppable"]) for one in seen] == [("write", "running", i, False) for i in range(count)]
    assert {one["stage"] for one in seen} == {way} and {one["total"] for one in seen[1:]} == {count}
    assert opened.work() is None


def test_long_work_is_seen_again_after_files_were_written(sets, folder):
    opened, gate = sets.open(str(folder)), threading.Event()
    opened.begin("tag", lambda told: gate.wait(30))
    opened.edit(Edit("add", {"tags": "new"}), Scope())
    assert opened.work()["name"] == "tag"
    gate.set()
    until(lambda: opened.work()["state"] == "done")


def test_writing_that_fails_is_over(sets, folder, monkeypatch):
    opened = sets.open(str(folder))
    monkeypatch.setattr(opened.library, "apply", lambda planned: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        opened.edit(Edit("add", {"tags": "new"}), Scope())
    assert opened.work() is None


# ---- edits that go by scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [Edit("above", {"least": 0.5}), Edit("sort", {"by": "confidence"})])
def test_what_goes_by_scores_says_that_there_are_none(sets, folder, edit):
    opened = sets.open(str(folder))
    with pytest.raises(ValueError, match="^No tagger has seen these pictures; tag them first.$"):
        opened.plan(edit, Scope())
    opened.plan(Edit("sort", {"by": "alphabet"}), Scope())
    opened.library.scores = lambda picture, tags=(): {"cat": 0.9} if picture.stem == "a" else {}
    told = opened.plan(edit, Scope())["told"]
    assert len(told) == 2 and all("has no scores and stays as it is" in text for text in told)
    with pytest.raises(ValueError, match="No tagger has seen"):
        opened.plan(edit, Scope((1, 2)))
    assert opened.plan(edit, Scope(()))["total"] == 0  # nothing is meant, so nobody is to have seen it
