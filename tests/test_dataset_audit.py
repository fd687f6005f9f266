"""Checks and advice through the routes: what is found, the filter by it, mends, and what is kept for the next check."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from conftest import until
from PIL import Image, ImageDraw, ImageFilter

from lib_tuner.datasets import Datasets
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs

testclient = pytest.importorskip("fastapi.testclient")
from test_datasets import Client  # noqa: E402

from lib_tuner.web.routes import make_app  # noqa: E402

CAPTIONS = {"a": "zwx, cat, cat, hat", "b": "cat, zwx", "blur": "zwx, hat", "small": None, "twin": "zwx, cat, oil painting"}


def drawing(seed: int, side: int = 640) -> Image.Image:
    """Sharp lines, other ones for each seed."""
    image = Image.new("RGB", (side, side), (40 * seed % 255, 120, 200))
    pen = ImageDraw.Draw(image)
    for i in range(24):
        x, y = (i * 97 * (seed + 1)) % side, (i * 61 * (seed + 3)) % side
        pen.rectangle((x, y, x + side // 6, y + side // 9), fill=(i * 37 % 255, i * 91 % 255, seed * 70 % 255), outline="white")
    return image


@pytest.fixture
def folder(tmp_path) -> Path:
    below = tmp_path / "set"
    below.mkdir()
    pictures = {"a": drawing(1), "b": drawing(2), "blur": drawing(3).filter(ImageFilter.GaussianBlur(8)), "small": drawing(4).resize((100, 100)), "twin": drawing(1).resize((600, 600))}
    for name, picture in pictures.items():
        picture.save(below / f"{name}.png")
        if CAPTIONS[name] is not None:
            (below / f"{name}.txt").write_text(CAPTIONS[name])
    return below


@pytest.fixture
def client(tmp_path, folder):
    with closing(Jobs(tmp_path / "out", Standalone)) as jobs, closing(Datasets()) as sets:
        yield Client(testclient.TestClient(make_app(jobs, [], sets=sets), base_url="http://127.0.0.1"), folder)


def check(client: Client, **order) -> dict:
    assert client.ok(client.post("audit", **order))["name"] == "audit"
    job = until(lambda: (now := client.ok(client.get("job"))["job"])["state"] != "running" and now)
    assert job["state"] == "done", job
    return job["result"]


def kinds(found: dict, key: str = "kinds") -> dict[str, dict]:
    return {kind["kind"]: kind for kind in found[key]}


def test_pictures_and_captions_are_checked_and_the_filter_finds_them(client):
    assert client.ok(client.get("audit"))["audit"] is None and client.names("problem:*") == []
    found = check(client, trigger="zwx")
    rows = {kind: {name["rows"][0] for name in [finding for finding in one["findings"]]} for kind, one in kinds(found).items()}
    assert (rows["blurred"], rows["too small"], rows["no caption"], rows["tag twice"]) == ({2}, {3}, {3}, {0})
    assert kinds(found)["no caption"]["findings"][0]["text"] == "small.png has no caption."
    assert client.names("problem:blurred") == ["blur.png"] and client.names('problem:"too small"') == ["small.png"] and client.names('problem:"trigger not first"') == ["b.png"]
    assert found["pictures"] == 5 and found["whole"] and client.ok(client.get("audit"))["audit"] == found
    details = client.ok(client.post("details", rows=[3]))[0]
    assert set(details["troubles"]) >= {"too small", "no caption"}


def test_twins_are_a_group_with_the_best_to_keep(client):
    found = check(client)
    assert [(group["keep"], [(twin["row"], twin["mirrored"]) for twin in group["others"]]) for group in found["groups"]] == [(0, [(4, False)])]
    assert client.names('problem:"near duplicate"') == ["a.png", "twin.png"]
    mend = kinds(found)["twin captions"]["findings"][0]
    assert mend["rows"] == [4] and mend["mends"] == [{"name": "add", "args": {"tags": ["hat"]}}]


def test_a_mend_is_an_edit_of_the_rows_of_its_finding(client, folder):
    kind = kinds(check(client, trigger="zwx"))["trigger not first"]
    assert kind["mend"] == {"name": "front", "args": {"tags": ["zwx"]}} and kind["rows"] == [1]
    seen = client.ok(client.post("plan", **kind["mend"], rows=kind["rows"]))
    client.ok(client.post("apply", plan=seen["plan"]))
    assert (folder / "b.txt").read_text() == "zwx, cat" and (folder / "a.txt").read_text() == CAPTIONS["a"]
    found = check(client, trigger="zwx")
    assert "trigger not first" not in kinds(found) and client.names('problem:"trigger not first"') == [] and found["version"] == 1


def test_advice_is_for_a_goal_and_each_has_its_edit(client):
    assert check(client)["advice"] == []
    advice = kinds(check(client, goal="style", trigger="zwx"), "advice")
    dropped = advice["drop"]["findings"][0]
    assert dropped["mends"] == [{"name": "remove", "args": {"tags": ["oil painting"]}}] and dropped["rows"] == [4] and "1 of 4 captions (25%)" in dropped["text"]


def test_a_part_is_checked_and_the_rest_keeps_what_was_found(client, folder):
    check(client)
    (folder / "small.txt").write_text("now, there")
    (folder / "lonely.txt").write_text("no picture has this")
    client.ok(client.post("read"))
    found = check(client, rows=[0, 1])
    assert found["pictures"] == 2 and not found["whole"] and "no picture" not in kinds(found)
    assert client.names('problem:"no caption"') == ["small.png"]  # what was found before, and not checked now
    assert client.names("problem:blurred") == ["blur.png"]
    assert "no picture" in kinds(check(client)) and client.names('problem:"no caption"') == []


def test_a_second_check_opens_no_picture(client, folder, monkeypatch):
    first = check(client)
    assert (folder / ".tuner" / "looks.jsonl").read_text().count("\n") == 5

    def refused(*what):
        raise ValueError("looked at")

    with monkeypatch.context() as unread:
        unread.setattr("lib_tuner.data.kept_looks.look_at", refused)
        assert check(client) == first  # size and time are the same
    monkeypatch.setattr("lib_tuner.data.audit.look", refused)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())  # known by its content
    client.ok(client.post("read"))
    assert [group["keep"] for group in check(client)["groups"]] == [0] and client.names('problem:"near duplicate"') == ["a.png", "b.png", "twin.png"]


def test_what_was_kept_and_is_damaged_is_looked_at_anew(client, folder):
    first = check(client)
    kept = folder / ".tuner" / "looks.jsonl"
    kept.write_text("{}\nnothing\n[1]\n" + kept.read_text().splitlines()[0] + "\n")
    assert check(client)["kinds"] == first["kinds"] and kept.read_text().count("\n") == 5


@pytest.mark.parametrize(("order", "said"), [({"goal": "fame"}, "There is no goal 'fame'"), ({"size": 3}, "3 px is no size to train at"), ({"filter": "(x"}, "The filter has a ( that is not closed")])
def test_what_cannot_be_is_one_sentence(client, order, said):
    answer = client.post("audit", **order)
    assert answer.status_code == 400 and answer.json()["error"].startswith(said)


def test_a_picture_that_cannot_be_read_is_a_finding_and_no_end(client, folder):
    (folder / "b.png").write_bytes(b"broken")
    found = kinds(check(client))
    assert found["unreadable"]["rows"] == [1] and client.names("problem:unreadable") == ["b.png"]
