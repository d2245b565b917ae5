"""Lines of a file by number."""

import pickle

import pytest

from recogdrive.data.vlm import line_file
from recogdrive.data.vlm.line_file import LineFile


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\nbc", [b"a", b"bc"]),
        (b"a\r\n\nb\n", [b"a", b"", b"b"]),
        (b"\n\n", [b"", b""]),
        ("\u2028ä\n".encode(), ["\u2028ä".encode()]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_lines_are_what_lies_between_newlines(tmp_path, monkeypatch, content, lines, chunk):
    monkeypatch.setattr(line_file, "_CHUNK", chunk)
    (tmp_path / "a").write_bytes(content)
    file = LineFile(tmp_path / "a")
    assert [file[i] for i in range(len(file))] == lines


def test_lines_can_be_read_in_another_process(tmp_path):
    (tmp_path / "a").write_bytes(b"a\nb\n")
    assert pickle.loads(pickle.dumps(LineFile(tmp_path / "a")))[1] == b"b"


def test_the_fingerprint_follows_the_content(tmp_path):
    def fingerprint(content):
        (tmp_path / "a").write_bytes(content)
        return LineFile(tmp_path / "a").fingerprint

    assert fingerprint(b"a\nb") == fingerprint(b"a\nb") != fingerprint(b"a\nc")


@pytest.mark.parametrize("number", [-1, 2])
def test_there_are_no_other_lines(tmp_path, number):
    (tmp_path / "a").write_bytes(b"a\nb\n")
    with pytest.raises(IndexError, match=f"line {number} of"):
        LineFile(tmp_path / "a")[number]


def test_a_file_that_became_shorter_is_noticed(tmp_path):
    (tmp_path / "a").write_bytes(b"a\nb\n")
    file = LineFile(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"a\n")
    with pytest.raises(ValueError, match="shorter"):
        file[1]


def test_an_absent_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="absent cannot be read"):
        LineFile(tmp_path / "absent")


def test_a_file_that_went_away_is_refused_by_name(tmp_path):
    (tmp_path / "a").write_bytes(b"a\n")
    file = LineFile(tmp_path / "a")
    (tmp_path / "a").unlink()
    with pytest.raises(ValueError, match="a cannot be read"):
        file[0]
