"""The routes of crops: what is found, moved, approved, filtered and written, and that no picture is changed by it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile

import pytest
from conftest import until
from PIL import Image
from test_datasets import Client, web  # noqa: F401

from lib_tuner.config import build
from lib_tuner.data.crop_file import Crop, change_crops, read_crops
from lib_tuner.data.crop_names import ExportConfig
from lib_tuner.data.crop_plan import CropConfig
from lib_tuner.data.journal import Journal, Limits
from lib_tuner.data.library import Library
from lib_tuner.dataset_crops import FolderCrops
from lib_tuner.datasets import OpenFolder, Scope

SIZES = {"10_cat/a.png": (400, 200), "10_cat/b.png": (200, 300), "c.png": (100, 100)}


def drawn(size, square):
    """Grey with a checked square: all the detail there is."""
    image = Image.new("RGB", size, (120, 120, 120))
    left, top = square
    for x in range(0, 60, 10):
        for y in range(0, 60, 10):
            image.paste((255, 255, 0) if (x + y) % 20 else (0, 0, 255), (left + x, top + y, left + x + 10, top + y + 10))
    return image


@pytest.fixture
def folder(tmp_path):
    below = tmp_path / "set"
    (below / "10_cat").mkdir(parents=True)
    for (name, size), square in zip(SIZES.items(), ((320, 70), (70, 20), (20, 20))):
        drawn(size, square).save(below / name)
        (below / name).with_suffix(".txt").write_text("cat, left arm" if name == "c.png" else "cat", encoding="utf-8")
    return below


@pytest.fixture
def client(web, folder):  # noqa: F811
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.*") if ".tuner" not in path.parts}
    made = CropClient(web, folder)
    yield made
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in before} | made.changed == before | made.changed, "a picture or caption was changed"


class CropClient(Client):
    size = "200x200"
    changed: dict = {}

    def crops(self, path, ok=True, **body):
        answer = self.post(f"crops/{path}", crop={"size": self.size, "focus": "detail", **body.pop("crop", {})}, **body)
        return self.ok(answer) if ok else answer.json()["error"]

    def work(self, path, **body):
        """Does long work, and gives its result."""
        self.crops(path, **body)
        until(lambda: self.job()["state"] not in ("running", "stopping"), 30)
        assert self.job()["state"] == "done", self.job()["error"]
        return self.job()["result"]

    def job(self):
        return self.ok(self.get("job"))["job"]

    def row(self, row):
        return self.crops("read", rows=[row])["crops"][0]


def box_of(entry):
    """In px of the picture, from what a page is given."""
    crop, (w, h) = entry["crops"][0], entry["size"]
    width, height = (side / crop["zoom"] for side in crop["frame"])
    return [round(value, 3) for value in ((crop["x"] - width / 2) * w, (crop["y"] - height / 2) * h, (crop["x"] + width / 2) * w, (crop["y"] + height / 2) * h)]


def test_crops_are_found_where_the_detail_is(client, folder):
    assert client.row(0) == {"row": 0, "state": "none", "mark": "", "size": None, "found": "", "crops": [], "troubles": [], "told": []}
    result = client.work("find")
    assert (result["found"], result["kept"], result["states"]) == (3, 0, {"auto": 3}) and result["troubles"] == {"small": 1, "review": 3}
    entry = client.row(0)
    assert entry["size"] == [400, 200] and entry["crops"][0]["frame"] == [0.5, 1.0] and entry["crops"][0]["times"] == 1.0 and entry["crops"][0]["size"] == [200, 200]
    left, top, right, bottom = box_of(entry)
    assert left <= 320 and right >= 380 and (top, bottom) == (0, 200) and right - left == 200
    assert set(read_crops(folder)) == set(SIZES)


def test_settings_are_refused_before_anything_is_saved(client):
    check = lambda **body: client.web.post("/tuner/api/data/crops/check", json=body, headers={"X-Tuner": "1"})  # noqa: E731
    assert check(crop={"size": "512x512"}, export={"name": "{name}_{crop}"}).json() == {"answer": True}
    assert check(export={"name": "{foo}"}).json()["error"].startswith("name: 'foo' is no value in braces")
    assert check(crop={"size": "big"}).status_code == 400


def test_the_filter_knows_crops_and_what_is_wrong_with_them(client):
    assert client.names("crop:none") == ["a.png", "b.png", "c.png"] and client.names("problem:small") == []
    client.work("find", rows=[0, 2])
    client.crops("change", row=0, crops=[{"x": 0.5}])
    assert [client.names(f"crop:{state}") for state in ("none", "auto", "adjusted")] == [["b.png"], ["c.png"], ["a.png"]]
    assert client.names("problem:small") == ["c.png"] and client.names("problem:review") == ["c.png"]
    assert client.row(2)["told"] == ["c.png is 100 x 100 px and its crop would be enlarged 2.00 times to 200 x 200, so it is left out; choose a smaller size or allow it."]
    client.size = "64x64"
    assert client.crops("summary")["troubles"] == {"review": 1} and client.names("problem:small") == []
    assert client.crops("approve", filter="crop:auto")["approved"] == 1 and client.names("crop:approved") == ["c.png"] and client.names("problem:*") == []
    details = client.ok(client.post("details", rows=[0, 1, 2]))
    assert [row["crop"] for row in details] == ["adjusted", "none", "approved"]


def test_what_a_person_has_set_stays_until_it_is_to_be_found_anew(client, folder):
    client.crops("change", row=0, crops=[{"x": 0.3, "zoom": 1.5}])
    assert (client.work("find")["kept"], client.row(0)["crops"][0]["x"]) == (1, 0.3)
    assert read_crops(folder)["10_cat/a.png"].crops[0].frame.zoom == 1.5
    client.work("find", again=True)
    assert client.row(0)["state"] == "auto" and client.row(0)["crops"][0]["zoom"] == 1


def test_a_frame_is_pushed_inside_and_several_are_kept(client, folder):
    entry = client.crops("change", row=0, crops=[{"x": 0.0, "y": 0.9}, {"x": 1.0000000001, "state": "approved", "target": "100x200"}])
    assert [(c["x"], c["y"], c["state"]) for c in entry["crops"]] == [(0.25, 0.5, "adjusted"), (0.875, 0.5, "approved")] and entry["state"] == "adjusted"
    assert entry["crops"][1]["frame"] == [0.25, 1.0] and read_crops(folder)["10_cat/a.png"].crops[1].target == "100x200"
    assert client.crops("change", row=0, crops=[])["state"] == "none" and read_crops(folder) == {}


def test_a_picture_that_has_changed_has_stale_crops_until_they_are_set_anew(client, folder):
    client.work("find")
    client.crops("approve")
    client.changed = {folder / "c.png": "by this test"}
    drawn((300, 200), (10, 10)).save(folder / "c.png")
    assert client.names("crop:stale") == client.names("problem:stale") == ["c.png"] and client.names("crop:approved") == ["a.png", "b.png"]
    assert client.crops("approve")["approved"] == 0 and client.row(2)["state"] == "stale"
    entry = client.crops("change", row=2, crops=[{"x": 0.5}])
    assert entry["state"] == "adjusted" and entry["size"] == [300, 200] and client.names("crop:stale") == []


def test_the_state_is_known_again_after_the_folder_was_closed(web, client, folder, monkeypatch):  # noqa: F811
    client.work("find")
    client.ok(client.post("close"))
    monkeypatch.setattr("lib_tuner.dataset_crops.digest", lambda data: pytest.fail("a picture was read to open its folder"))
    again = CropClient(web, folder)
    assert again.names("crop:auto") == ["a.png", "b.png", "c.png"]


def test_another_programs_crops_are_seen(client, folder):
    client.work("find")
    change_crops(folder, lambda kept: {key: type(record)(record.size, record.digest, (Crop(state="approved"),)) for key, record in kept.items()})
    assert client.row(0)["state"] == "approved" and client.row(0)["crops"][0]["x"] == 0.5


def test_a_zip_without_a_path_lies_beside_the_folder_under_a_name_that_is_free(client, folder):
    client.work("find", filter="crop:none")
    client.crops("change", row=0, crops=[{"x": 0.25}])
    for name in ("set-crops.zip", "set-crops_2.zip"):
        result = client.work("export", zip=True, export={"form": "png"})
        assert result["path"] == str(folder.parent / name) and result["pictures"] == 2 and "c.png is 100 x 100 px" in result["told"][0]
    with zipfile.ZipFile(folder.parent / "set-crops.zip") as archive:
        assert set(archive.namelist()) == {"10_cat/a.png", "10_cat/a.txt", "10_cat/b.png", "10_cat/b.txt", "manifest.json"}
        made = Image.open(io.BytesIO(archive.read("10_cat/a.png")))
        assert made.size == (200, 200) and made.tobytes() == Image.open(folder / "10_cat/a.png").crop((0, 0, 200, 200)).tobytes()
        assert json.loads(archive.read("manifest.json"))["pictures"][0]["box"] == [0, 0, 200, 200]


def test_a_folder_gets_mirrored_copies_in_the_wanted_form(client, folder, tmp_path):
    client.size = "64x96"
    client.work("find")
    result = client.work("export", out="made", export={"form": "jpg", "quality": 80, "mirror": "safe", "flat": True, "name": "{index}"}, filter="path:c.png OR name:a.png")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["1.jpg", "1.txt", "1_mirrored.jpg", "1_mirrored.txt", "2.jpg", "2.txt"] and result["pictures"] == 3
    assert any("left" in line for line in result["told"]) and Image.open(tmp_path / "made" / "2.jpg").size == (64, 96)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("find", {"crop": {"size": "big"}}, "'big' is no size of a crop"), ("find", {"crop": {"enlarge": 99}}, "enlarge: 99"), ("find", {"filter": "(x"}, "is not closed"),
        ("change", {"row": 99, "crops": [{}]}, "not in the folder any more"), ("change", {"row": 0, "crops": [{"x": 1.2}]}, "outside the picture"),
        ("change", {"row": 0, "crops": [{"state": "good"}]}, "not 'good'"), ("export", {}, "find crops first"), ("approve", {"filter": "("}, ""),
    ],
)
def test_what_cannot_be_is_one_sentence(client, path, body, said):
    assert said in client.crops(path, ok=False, **body)


# ---- what is taken back, and what another page has done


def last(client):
    return client.crops("summary")["undo"]


def test_approving_many_is_taken_back_as_one_act_also_after_the_folder_was_closed(web, client, folder):  # noqa: F811
    client.work("find")
    client.crops("change", row=0, crops=[{"x": 0.3}])
    before = (folder / ".tuner" / "crops.json").read_bytes()
    assert client.crops("approve")["undo"] == {"number": 3, "name": "approve", "pictures": 3}
    client.ok(client.post("close"))
    again = CropClient(web, folder)
    answer = again.crops("undo", number=last(again)["number"])
    assert (answer["rows"], answer["undo"]["name"], answer["states"]) == ([0, 1, 2], "change", {"adjusted": 1, "auto": 2}) and (folder / ".tuner" / "crops.json").read_bytes() == before
    assert again.crops("undo", number=2)["rows"] == [0] and again.row(0)["state"] == "auto"
    assert again.crops("undo", number=1)["states"] == {"none": 3} and last(again) is None and read_crops(folder) == {}


def test_finding_again_in_several_batches_is_one_act_and_gives_back_what_a_person_had_set(client, folder, monkeypatch):
    monkeypatch.setattr("lib_tuner.dataset_crops.BATCH", 1)
    client.crops("change", row=0, crops=[{"x": 0.3, "zoom": 1.5}, {"x": 0.6}])
    before = read_crops(folder)
    client.work("find", again=True)
    assert client.row(0)["state"] == "auto" and last(client) == {"number": 2, "name": "find", "pictures": 3}
    client.crops("undo", number=2)
    assert read_crops(folder) == before


def test_what_is_found_is_written_less_often_the_more_there_is(client, folder, monkeypatch):
    """Each time the whole file is written: every so many pictures would take a time that grows with their square."""
    writes = []
    monkeypatch.setattr("lib_tuner.dataset_crops.BATCH", 1)
    monkeypatch.setattr(FolderCrops, "_keep", lambda self, records, *more, keep=FolderCrops._keep: (writes.append(len(records)), keep(self, records, *more))[1])
    client.work("find")
    assert writes == [1, 1, 1, 0]
    change_crops(folder, lambda kept: {**kept, **{f"gone/{i}.png": kept["c.png"] for i in range(17)}})
    writes.clear()
    client.work("find")
    assert writes == [2, 1]


def test_one_page_does_not_take_back_what_another_has_done(client, folder):
    client.work("find")
    mine = client.crops("change", row=0, crops=[{"x": 0.3}])["undo"]
    client.crops("change", row=1, crops=[{"x": 0.5}])  # the other page
    assert client.crops("undo", ok=False, number=mine["number"]) == "Something else was done meanwhile; look at what Undo says now."
    assert client.row(0)["state"] == client.row(1)["state"] == "adjusted"


def test_what_another_program_changed_since_is_not_taken_back(client, folder):
    client.work("find")
    client.crops("approve", rows=[0, 1])
    theirs = {key: type(record)(record.size, record.digest, (Crop(state="adjusted"),)) for key, record in read_crops(folder).items() if key == "10_cat/a.png"}
    change_crops(folder, lambda kept: {**kept, **theirs})
    assert "changed by another program since, so nothing was taken back" in client.crops("undo", ok=False, number=last(client)["number"])
    assert read_crops(folder)["10_cat/a.png"] == theirs["10_cat/a.png"] and client.row(1)["state"] == "approved"
    assert last(client)["name"] == "find", "what can never be taken back does not stand before the rest"


def test_an_act_that_could_not_be_written_is_none(client, folder, monkeypatch):
    client.work("find")
    monkeypatch.setattr("lib_tuner.data.crop_file.atomic", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    before, acts = (folder / ".tuner" / "crops.json").read_bytes(), sorted((folder / ".tuner" / "crop-acts").iterdir())
    assert "No space left" in client.crops("approve", ok=False)
    assert (folder / ".tuner" / "crops.json").read_bytes() == before and sorted((folder / ".tuner" / "crop-acts").iterdir()) == acts


def test_acts_are_kept_up_to_a_limit_and_a_damaged_one_is_passed_over(client, folder, monkeypatch):
    monkeypatch.setattr("lib_tuner.data.crop_acts.LIMITS", Limits(entries=3))
    for x in range(30, 36):
        client.crops("change", row=0, crops=[{"x": x / 100}])
    files = sorted((folder / ".tuner" / "crop-acts").iterdir())
    assert [path.name for path in files] == ["000004.json", "000005.json", "000006.json"]
    files[-1].write_text("{")
    assert last(client)["number"] == 5 and "by another program" in client.crops("undo", ok=False, number=5)


def test_crops_that_another_page_has_changed_are_not_written_over(client, folder):
    client.work("find")
    seen = client.row(0)["mark"]
    mine = client.crops("change", row=0, crops=[{"x": 0.3}], was=seen)
    assert mine["mark"] not in ("", seen) and client.crops("change", row=0, crops=[{"x": 0.4}], was=mine["mark"])["crops"][0]["x"] == 0.4
    for path, body in (("change", {"row": 0, "crops": [{"x": 0.7}]}), ("change", {"row": 0, "crops": []}), ("approve", {"rows": [0]})):
        assert "changed elsewhere meanwhile, so nothing was changed" in client.crops(path, ok=False, was=seen, **body)
    assert client.row(0)["crops"][0]["x"] == 0.4 and client.crops("change", row=0, crops=[], was=client.row(0)["mark"])["mark"] == ""
    assert "changed elsewhere" in client.crops("change", ok=False, row=0, crops=[{}], was=seen) and client.crops("change", row=0, crops=[{}], was="")["state"] == "adjusted"


# ---- the ZIP


def test_the_zip_of_the_last_export_can_be_fetched_and_no_other(client, folder):
    client.work("find")
    assert client.get("crops/zip").status_code == 404
    result = client.work("export", zip=True, out="Bücher.zip")
    answer = client.get("crops/zip")
    assert result["zip"] and answer.status_code == 200 and answer.content == (folder.parent / "Bücher.zip").read_bytes() and answer.headers["content-type"] == "application/zip"
    assert "attachment" in answer.headers["content-disposition"] and "B%C3%BCcher.zip" in answer.headers["content-disposition"]
    assert client.crops("summary")["zip"] == "Bücher.zip"
    (folder.parent / "Bücher.zip").write_bytes(b"another")
    assert client.crops("summary")["zip"] == "" and client.get("crops/zip").status_code == 404 and "save the crops as ZIP again" in client.get("crops/zip").text
    client.work("export", zip=True)
    assert client.get("crops/zip").status_code == 200
    assert client.work("export", out="plain")["zip"] is False and client.get("crops/zip").status_code == 404


def test_the_fields_are_those_of_the_command_line(client):
    fields = {field["key"]: field for field in client.web.get("/tuner/api/data/crops/fields").json()}
    assert {key for key, field in fields.items() if field["of"] == "crop"} == {field.name for field in dataclasses.fields(CropConfig)}
    assert {key for key, field in fields.items() if field["of"] == "export"} == {field.name for field in dataclasses.fields(ExportConfig)}
    assert build(CropConfig, {key: field["value"] for key, field in fields.items() if field["of"] == "crop"}) == CropConfig()
    assert build(ExportConfig, {key: field["value"] for key, field in fields.items() if field["of"] == "export"}) == ExportConfig()
    assert fields["overlap"]["kind"] == "number" and fields["masks"]["kind"] == "flag" and fields["split"]["choices"] == ["off", "strips", "pixels"] and fields["background"]["help"]


def test_a_size_that_cannot_be_is_refused_in_the_forms_words_and_forgotten(client):
    client.work("find")
    for size in ("bucket:32", "big"):
        said = client.crops("summary", ok=False, crop={"size": size})
        assert said.startswith(f"'{size}'") and "data." not in said
        assert client.names("problem:small") == ["c.png"] and client.ok(client.post("details", rows=[0]))


def test_a_size_that_cannot_be_is_forgotten_also_where_nobody_has_checked_it(folder):
    crops = FolderCrops.of(OpenFolder(Library(folder)))
    crops.change(0, [Crop()], CropConfig(size="200x200"))
    with pytest.raises(ValueError, match="write bucket:64 or more"):
        crops.summary(CropConfig(size="bucket:32"))
    assert crops.library.troubles(0)[-1:] == ("review",)


def test_an_enormous_zoom_is_a_pixels(client):
    entry = client.crops("change", row=0, crops=[{"zoom": 1e17}])
    assert entry["crops"][0]["zoom"] == 200 and "would be enlarged 200.00 times" in entry["told"][0] and client.names("problem:small") == ["a.png"]


def test_what_cannot_be_written_is_said(client, folder):
    client.work("find")
    assert "name a folder, or save as ZIP" in client.crops("export", ok=False, out="x.zip")
    assert "makes no file name" in client.crops("export", ok=False, export={"name": "../x"})
    client.crops("export", out=str(folder / "inside"))
    until(lambda: client.job()["state"] == "failed", 30)
    assert "in the folder of the originals" in client.job()["error"] and not (folder / "inside").exists()


def test_a_damaged_file_of_crops_stops_crops_alone(web, folder):  # noqa: F811
    (folder / ".tuner").mkdir()
    (folder / ".tuner" / "crops.json").write_text("{")
    client = CropClient(web, folder)
    assert client.names("cat") == ["a.png", "b.png", "c.png"] and client.names("crop:none") != []
    assert "is damaged and was left alone" in client.crops("read", ok=False, rows=[0]) and (folder / ".tuner" / "crops.json").read_text() == "{"


def test_a_folder_that_cannot_be_written_has_crops_as_long_as_it_is_open(folder):
    opened = OpenFolder(Library(folder))  # without a journal
    crops, cfg = FolderCrops.of(opened), CropConfig(size="200x200", focus="centre")
    crops.find(Scope(), cfg)
    until(lambda: opened.work()["state"] == "done", 30)
    crops.change(0, [Crop(state="adjusted")], cfg)
    crops.approve(Scope(), cfg)
    crops.undo(3, cfg)
    assert [opened.library.crop(row) for row in opened.library.pictures] == ["adjusted", "auto", "auto"] and not (folder / ".tuner").exists()


def test_crops_that_were_set_while_another_program_had_the_folder_are_kept_when_it_lets_go(folder):
    cfg = CropConfig(size="200x200", focus="centre")
    with Journal(folder):
        library = Library.open(folder)
        crops = FolderCrops.of(OpenFolder(library))
        crops.change(0, [Crop(state="adjusted")], cfg)
        change_crops(folder, lambda kept: {"c.png": dataclasses.replace(crops._book["10_cat/a.png"], crops=())})  # by the other program
        crops.change(1, [Crop(state="adjusted")], cfg)
    library.try_again()
    crops.summary(cfg)
    assert sorted(read_crops(folder)) == ["10_cat/a.png", "10_cat/b.png", "c.png"]
    crops.change(2, [Crop(state="adjusted")], cfg)
    assert [library.crop(row) for row in library.pictures] == ["adjusted"] * 3
    library.close()


def test_a_picture_that_cannot_be_read_is_said_and_the_others_are_found(client, folder):
    client.changed = {folder / "c.png": "by this test"}
    (folder / "c.png").write_bytes(b"broken")
    result = client.work("find")
    assert result["found"] == 2 and result["problems"] == 1 and result["told"][0].startswith("c.png is no picture") and client.names("crop:none") == ["c.png"]


def test_other_sites_change_nothing(client):
    assert client.web.post(f"/tuner/api/data/{client.id}/crops/find", json={}).status_code == 403 and client.row(0)["state"] == "none"
