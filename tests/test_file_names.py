"""Names of files that are written in another way than the disk has them, in lists and of captions."""

from __future__ import annotations

import pytest
from test_items import find, paint

from lib_tuner.data.file_names import Names


def test_of_several_names_that_may_be_meant_none_is(tmp_path):
    (tmp_path / "Sub").mkdir()
    for name in ("a.PNG", "A.png", "b.PNG"):
        (tmp_path / "Sub" / name).touch()
    names = Names()
    assert names.like(tmp_path / "sub" / "b.png") == tmp_path / "Sub" / "b.PNG" and names.like(tmp_path / "Sub" / "A.png") == tmp_path / "Sub" / "A.png"
    assert names.like(tmp_path / "sub" / "a.png") is None and names.like(tmp_path / "none" / "b.png") is None


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"file_name": "%s.png", "text": "x"}' % ("q" * 300), "which is not there"), ('{"file_name": "b.png", "n": %s}' % ("1" * 5000), "line 1 is no JSON"),
        ("[" * 100000, "line 1 is no JSON"), ('{"file_name": "a\\u0000.png", "text": "x"}', "which is not there"),
    ],
)  # fmt: skip
def test_a_row_that_no_disk_or_parser_takes_is_a_problem_of_its_line(tmp_path, line, said):
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f'{line}\n{{"file_name": "a.png", "text": "listed"}}\n')
    items, problems = find(tmp_path)
    assert items["a.png"].caption == "listed" and [problem.kind for problem in problems] == ["list"] and "line 1 " in problems[0].text and said in problems[0].text


@pytest.mark.parametrize("named", ["sub\\\\b\u00e9.png", "sub/b\u00e9.png", "./Sub/B\u00c9.PNG", "sub/../sub/be\u0301.png"])
def test_a_list_names_pictures_in_the_letters_of_another_system(tmp_path, named):
    (tmp_path / "sub").mkdir()
    paint(tmp_path / "sub" / "be\u0301.png")  # the accent as a letter of its own, as some disks have it
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "{named}", "text": "listed"}}\n', encoding="utf-8")
    items, problems = find(tmp_path)
    assert [(item.caption, item.caption_source) for item in items.values()] == [("listed", "list")] and problems == []


def test_a_caption_is_found_in_other_capitals_and_with_accents_as_letters_of_their_own(tmp_path):
    for name in ("a.png", "b\u00e9.png", "Cat.png", "cat.JPG"):
        paint(tmp_path / name)
    for name, text in {"a.TXT": "one", "be\u0301.txt": "two", "cat.txt": "three"}.items():
        (tmp_path / name).write_text(text)
    items = find(tmp_path, caption_from="file")[0]
    assert {name: item.caption for name, item in items.items()} == {"a.png": "one", "b\u00e9.png": "two", "cat.JPG": "three", "Cat.png": ""}  # which is cat.JPG's
    (tmp_path / "a.txt").write_text("exact")
    assert find(tmp_path)[0]["a.png"].caption == "exact"
