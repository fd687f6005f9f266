"""What lists and data sets say of their pictures, read as people write them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from lib_tuner.data.items import scan
from lib_tuner.data.sources import listed_captions
from lib_tuner.settings import DataConfig

MORE = "which were taken for the rest of its caption: put quotes around a caption with commas"


def listed(folder, text: str) -> tuple[dict[str, str], list[str]]:
    """The captions of a list by picture, and what is wrong with it."""
    told: list[str] = []
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    found = listed_captions(folder / "metadata.csv", lambda path, text, kind: told.append(text))
    return {path.name: caption for path, caption in found.items()}, [text for text in told if "which is not there" not in text]


def test_a_caption_with_commas_and_no_quotes_is_whole_and_told_once(tmp_path):
    found, told = listed(tmp_path, "file_name,text\na.png,1girl, red hair, smile\nb.png,a dog,\nc.png,x,y\n")
    assert found == {"a.png": "1girl, red hair, smile", "b.png": "a dog", "c.png": "x, y"}
    assert told == [f"line 2 has more columns than the first line, {MORE}"]


def test_where_the_caption_is_not_the_last_column_a_row_of_too_many_is_left_out(tmp_path):
    found, told = listed(tmp_path, "text,file_name\n1girl, red hair,a.png\na dog,b.png\n")
    assert found == {"b.png": "a dog"} and told == ["line 2 has more columns than the first line; it was left out: put quotes around a caption with commas"]


def test_blanks_before_a_quote_and_lines_within_quotes_are_read(tmp_path):
    assert listed(tmp_path, 'file_name, text\na.png, "a cat, sitting"\n\nb.png,"two\nlines"\nc.png,a 5" disk\n') == ({"a.png": "a cat, sitting", "b.png": "two\nlines", "c.png": 'a 5" disk'}, [])


@pytest.mark.parametrize("broken", ['"a cat', '"a cat" on a "mat', '"' + "x" * 200_000])
def test_a_row_whose_quotes_do_not_fit_is_a_problem_and_swallows_no_other(tmp_path, broken):
    found, told = listed(tmp_path, f'file_name,text\na.png,one\nb.png,{broken}\nc.png,three\nd.png,"four, five"\n')
    assert found == {"a.png": "one", "c.png": "three", "d.png": "four, five"}
    assert [text.partition(";")[0] for text in told] == ["line 3 has a quote that is never closed"]


def test_a_row_with_words_behind_a_closed_quote_is_read_without_its_quotes(tmp_path):
    found, told = listed(tmp_path, 'file_name,text\na.png,"Hello" on a sign\nb.png,"a" b, "c" d\nc.png,"five, six"\n')
    assert found == {"a.png": "Hello on a sign", "b.png": "a b, c d", "c.png": "five, six"}
    assert [text.partition(";")[0] for text in told[:2]] == ["line 2 has words behind a quote that is closed", "line 3 has words behind a quote that is closed"]


def test_a_comma_at_the_end_of_the_first_line_makes_no_column(tmp_path):
    assert listed(tmp_path, "file_name,text,\na.png,1girl, red hair\nb.png,a dog,\n") == ({"a.png": "1girl, red hair", "b.png": "a dog"}, [f"line 2 has more columns than the first line, {MORE}"])
    assert listed(tmp_path, ",,\na.png,a cat\n")[0] == {}
    assert listed(tmp_path, "text,file_name,\na cat,a.png,x\n") == ({"a.png": "a cat"}, [])  # a column without a heading


def test_a_list_with_nul_characters_says_that_alone(tmp_path):
    """Python 3.10 refuses them in every line."""
    told: list[str] = []
    (tmp_path / "metadata.csv").write_bytes("file_name,text\na.png,a cat\nb.png,a dog\n".encode("utf-16-le"))
    assert listed_captions(tmp_path / "metadata.csv", lambda path, text, kind: told.append(text)) == {} and len(told) == 1 and "NUL" in told[0]
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,a c\0at\n")  # a single one costs its letter
    assert listed_captions(tmp_path / "metadata.csv", lambda path, text, kind: told.append(text)).values()



def test_a_parquet_row_that_names_a_picture_elsewhere_says_so(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Image.new("RGB", (40, 30), "red").save(file := io.BytesIO(), "PNG")
    rows = [{"bytes": None, "path": "far/a.png"}, {"bytes": file.getvalue(), "path": "b.png"}]
    parquet.write_table(pyarrow.table({"image": rows, "text": ["a cat", "a dog"]}), tmp_path / "train.parquet")
    items, problems = scan(DataConfig(folder=str(tmp_path)), tmp_path)
    assert [(item.row, item.caption) for item in items] == [(1, "a dog")]
    assert [problem.text for problem in problems] == ["row 0 names a.png but does not hold it; put the picture itself into the file"]
