"""Lists of videos and captions: a folder, a .csv, a .jsonl; what is wrong with a line, in a line."""

import json
from pathlib import Path

import pytest

from distill.data import captions
from distill.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Two videos, one in a folder of its own."""
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "deep/a.MOV"):
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / name).with_suffix(".txt").write_text(f"a film\nof {name[-5]} ")
    return tmp_path


def facts(source: Path) -> list[tuple]:
    return [(each.name, each.caption, each.fault) for each in captions.read(source)]


def test_a_folder_is_searched_to_its_depths_in_the_order_of_names(folder):
    (folder / ".hidden").mkdir()
    for name in (".hidden/c.mp4", "._b.mp4", "notes.txt", "picture.png"):
        (folder / name).write_text("x")
    assert facts(folder) == [("b.mp4", "a film of b", None), ("deep/a.MOV", "a film of a", None)]
    assert [each.path for each in captions.read(folder)] == [folder / "b.mp4", folder / "deep/a.MOV"]


def test_a_video_of_a_folder_without_a_caption_is_named_with_the_file_that_should_have_it(folder):
    (folder / "b.txt").unlink()
    (folder / "deep/a.txt").write_bytes(b"a \xff")
    (folder / "c.webm").write_text("x")
    (folder / "c.txt").write_text(" \n")
    assert [fault for *_, fault in facts(folder)] == [
        "no caption: b.txt is missing",
        "no caption: c.txt is empty",
        "no caption: a.txt is not UTF-8 at byte 2",
    ]


def test_a_byte_order_mark_is_no_part_of_a_caption(folder):
    (folder / "b.txt").write_bytes("\ufeffa film".encode())
    assert facts(folder)[0][1] == "a film"


@pytest.mark.parametrize("path", ["path", "video", "file"])
@pytest.mark.parametrize("caption", ["caption", "text", "prompt"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_columns_of_a_list_have_any_of_their_names(path, caption, kind, folder):
    rows = [
        {"id": 3, caption: 'one, "two"', path: "deep/a.MOV"},
        {"id": 4, caption: "three\nfour", path: folder / "b.mp4"},
    ]
    source = folder / f"list.{kind}"
    if kind == "csv":
        source.write_text(f'id,{caption},{path}\n3,"one, ""two""",deep/a.MOV\n\n4,"three\nfour",{folder}/b.mp4\n')
    else:
        source.write_text("\n".join(json.dumps(row, default=str) for row in rows) + "\n\n")
    expected = [("deep/a.MOV", 'one, "two"', None), (f"{folder}/b.mp4", "three four", None)]
    assert facts(source) == expected
    lines = [2, 5] if kind == "csv" else [1, 2]
    assert [each.where for each in captions.read(source)] == [f"{source}:{line}" for line in lines]


def test_a_list_starts_from_its_own_folder_and_its_order_is_kept(folder, monkeypatch):
    monkeypatch.chdir("/")
    source = folder / "deep/list.csv"
    source.write_text("file,text\n../b.mp4,b\na.MOV,a\n")
    assert [each.path.resolve() for each in captions.read(source)] == [folder / "b.mp4", folder / "deep/a.MOV"]


def test_what_is_wrong_with_a_video_of_a_list_does_not_stop_the_others(folder):
    source = folder / "list.jsonl"
    rows = [
        {"path": "b.mp4", "caption": "b"},
        {"path": "gone.mp4", "caption": "b"},
        {"path": "deep/a.MOV", "caption": "  "},
        {"path": "deep/../b.mp4", "caption": "again"},
        {"path": "", "caption": "b"},
        {"path": None, "caption": None},
        {"path": "deep", "caption": "b"},
    ]
    source.write_text("\n".join(map(json.dumps, rows)))
    found = captions.read(source)
    assert [each.fault for each in found] == [
        None,
        f"no such file: {folder}/gone.mp4",
        "no caption: it is empty",
        "listed before: in line 1",
        "no path",
        "no path",
        f"no such file: {folder}/deep",
    ]
    assert [each.where for each in found] == [f"{source}:{line}" for line in range(1, 8)]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        (
            "a.csv",
            "name,caption\nb.mp4,b\n",
            ["1: no path; expected a column path or video or file, has name, caption"],
        ),
        ("a.csv", "path,caption\nb.mp4,one, two\n", ["2: more values than columns: [' two']"]),
        ("a.csv", 'path,caption\nb.mp4,"open\n', ["2: not CSV (unexpected end of data)"]),
        (
            "a.jsonl",
            '{"path": "b.mp4"}\n{"path": \n[1]\n{"path": "b.mp4", "caption": "b"}\n{}\n',
            [
                "1: no caption; expected a column caption or text or prompt, has path",
                "2: not JSON (Expecting value: line 1 column 10 (char 9))",
                "3: not a JSON object",
                "5: no path; expected a column path or video or file, has none",
            ],
        ),
    ],
)
def test_lines_that_cannot_be_understood_are_all_named(name, text, lines, folder):
    (folder / name).write_text(text)
    with pytest.raises(UserError) as error:
        captions.read(folder / name)
    assert str(error.value).splitlines() == [f"{folder / name}:{line}" for line in lines]


def test_of_many_such_lines_the_first_are_named(folder):
    (folder / "a.jsonl").write_text("{\n" * 25)
    with pytest.raises(UserError) as error:
        captions.read(folder / "a.jsonl")
    told = str(error.value).splitlines()
    assert len(told) == 11 and told[-1] == f"{folder / 'a.jsonl'}: 15 more lines like these"


def test_a_line_separator_within_a_caption_ends_no_line(folder):
    (folder / "a.jsonl").write_text('{"path": "b.mp4", "caption": "one\u2028two\x85three"}\n')
    (folder / "a.csv").write_text("path,caption\nb.mp4,one\u2028two\x85three\n")
    for name in ("a.jsonl", "a.csv"):
        assert facts(folder / name) == [("b.mp4", "one two three", None)]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.parquet", b"PAR1", "a.parquet: expected a folder of videos, a .csv or a .jsonl file"),
        ("gone.csv", None, "gone.csv: no such folder, .csv or .jsonl file of videos"),
        ("a.csv", b"path,caption\n", "a.csv: no videos; expected a path and a caption in each line"),
        ("a.csv", b"", "a.csv: no videos; expected a path and a caption in each line"),
        ("a.jsonl", b"\xff", "a.jsonl: not UTF-8 at byte 0; save the list as UTF-8 text"),
        ("deep", None, None),
    ],
)
def test_a_source_that_is_none_says_what_it_should_be(name, content, line, folder):
    for path in (folder / "deep").iterdir():
        path.unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        captions.read(folder / name)
    expected = line or "deep: no videos; expected videos (.mp4, .m4v, "
    assert str(error.value).startswith(f"{folder}/{expected}") and "\n" not in str(error.value)
