"""Files and folders that are whole or not there."""

import os

import pytest

from noiseloom.modalities.atomic import CannotWrite, make_folder, making_folder, remove, replacing, write, write_all


def test_text_and_bytes_are_written_and_nothing_else_is_left(tmp_path):
    assert write(tmp_path / "a.txt", ["one ", "\u00e9"]) == tmp_path / "a.txt"
    write(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "one é".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b"]


def test_what_stops_half_way_leaves_the_older_file(tmp_path):
    write(tmp_path / "a", b"old")

    def parts():
        yield "half"
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write(tmp_path / "a", parts())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_reader_sees_nothing_before_the_end(tmp_path):
    with replacing(tmp_path / "a.wav") as partial:
        partial.write_bytes(b"whole")
        assert not (tmp_path / "a.wav").exists()
        assert partial.suffix == ".partial"  # never taken for a sound
    assert (tmp_path / "a.wav").read_bytes() == b"whole"


def test_files_are_written_in_order_and_older_ones_removed(tmp_path):
    write_all(tmp_path / "new" / "folder", {"b": b"1", "a": b"2"})
    paths = write_all(tmp_path / "new" / "folder", {"b": None, "c": ["3"], "a": b"4"})
    assert [path.name for path in paths] == ["c", "a"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["a", "c"]


def test_what_cannot_be_written_is_told_in_one_line(tmp_path):
    write(tmp_path / "taken", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CannotWrite, match=r"^cannot write .*x: Not a directory$"):
        write(tmp_path / "taken" / "x", b"")
    with pytest.raises(CannotWrite, match=r"^cannot make the folder .*taken: File exists$"):
        make_folder(tmp_path / "taken")
    with pytest.raises(CannotWrite, match=r"^cannot write .*folder: Is a directory$"):
        write(tmp_path / "folder", b"")
    with pytest.raises(CannotWrite, match=r"^cannot remove .*folder"):
        remove(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "taken"]
    assert isinstance(CannotWrite("x"), OSError)


def test_a_folder_is_whole_or_not_there(tmp_path):
    def stops():
        with making_folder(tmp_path / "a") as partial:
            write(partial / "half", b"1")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stops()
    assert os.listdir(tmp_path) == []
    with making_folder(tmp_path / "a") as partial:
        write(partial / "whole", b"2")
        assert os.listdir(tmp_path) == [partial.name]
    assert os.listdir(tmp_path) == ["a"]
    with making_folder(tmp_path / "a") as partial:  # another process was faster: its folder stays
        write(partial / "late", b"3")
    assert (os.listdir(tmp_path), os.listdir(tmp_path / "a")) == (["a"], ["whole"])


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    write(tmp_path / "file", b"")
    with pytest.raises(CannotWrite, match="cannot make the folder"), making_folder(tmp_path / "file" / "a"):
        pass
    with pytest.raises(CannotWrite, match="cannot make the folder"), making_folder(tmp_path / "file"):
        pass
    assert os.listdir(tmp_path) == ["file"]
