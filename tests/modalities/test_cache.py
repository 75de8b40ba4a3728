"""The cache: what was put in comes out, a changed setting is another entry, a damaged one is made again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from noiseloom.modalities.cache import Arrays, CannotCache, Writer, cached_arrays
from noiseloom.modalities.extras import cache_folder

ITEMS = [np.arange(6.0).reshape(3, 2), np.zeros((0, 2)), np.full((2, 2), -1.5)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def builder(calls: list[int] | None = None, items: list[np.ndarray] = ITEMS) -> Callable[[Writer], None]:
    def build(writer: Writer) -> None:
        if calls is not None:
            calls.append(1)
        for item in items:
            writer.add(item)
        writer.meta["names"] = ["a", "b", "c"]

    return build


def make(setting: int = 1, calls: list[int] | None = None) -> Arrays:
    return cached_arrays("test", {"setting": setting}, builder(calls), shape=(2,))


def entries() -> list[Path]:
    return list((cache_folder() / "test").iterdir())


def test_items_come_back_and_are_built_once() -> None:
    calls: list[int] = []
    for arrays in (make(calls=calls), make(calls=calls)):
        assert len(arrays) == 3
        assert arrays.lengths.tolist() == [3, 0, 2]
        assert arrays.meta == {"names": ["a", "b", "c"]}
        for item, wanted in zip(arrays, ITEMS, strict=True):
            np.testing.assert_array_equal(item, wanted)
        np.testing.assert_array_equal(arrays[-1], ITEMS[2])
    assert calls == [1]


def test_an_item_is_a_read_only_view_of_the_file() -> None:
    arrays = make()
    assert isinstance(arrays.data, np.memmap)
    assert np.shares_memory(arrays[0], arrays.data)
    with pytest.raises(ValueError, match="read-only"):
        arrays[0][0, 0] = 1
    with pytest.raises(IndexError, match="item 3 of 3"):
        arrays[3]


def test_a_changed_setting_is_another_entry() -> None:
    calls: list[int] = []
    first, second = make(1, calls), make(2, calls)
    half = cached_arrays("test", {"setting": 1}, builder(calls), shape=(2,), dtype="float16")
    assert len(calls) == 3
    assert len({first.key, second.key, half.key}) == 3
    assert half.data.dtype == np.float16


def test_the_order_of_a_fingerprint_does_not_matter() -> None:
    one = cached_arrays("test", {"a": 1, "b": [2, 3]}, builder(), shape=(2,))
    assert cached_arrays("test", {"b": [2, 3], "a": 1}, builder(), shape=(2,)).key == one.key


@pytest.mark.parametrize("name", ["data.npy", "offsets.npy", "header.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_entry_is_made_again(name: str, damage: str) -> None:
    key = make().key
    file = cache_folder() / "test" / key / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:-1])
    calls: list[int] = []
    np.testing.assert_array_equal(make(calls=calls)[2], ITEMS[2])
    assert calls == [1]
    make(calls=calls)
    assert calls == [1]
    assert len(entries()) == 1  # the damaged one is not left behind


def test_entries_of_no_items_and_of_no_samples() -> None:
    for number, items in enumerate(([], [np.zeros((0, 2))])):
        for _ in range(2):
            arrays = cached_arrays("test", {"empty": number}, builder(items=items), shape=(2,))
            assert (len(arrays), arrays.data.shape) == (number, (0, 2))


def test_a_builder_that_fails_leaves_nothing() -> None:
    def fail(writer: Writer) -> None:
        writer.add(ITEMS[0])
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        cached_arrays("test", {}, fail, shape=(2,))
    assert entries() == []
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        cached_arrays("test", {}, lambda writer: writer.add(np.zeros(3)), shape=(2,))


def test_another_process_that_was_first_wins() -> None:
    inner: list[Arrays] = []

    def build(writer: Writer) -> None:
        inner.append(make())  # as if another process had finished meanwhile
        builder()(writer)

    outer = cached_arrays("test", {"setting": 1}, build, shape=(2,))
    assert outer.key == inner[0].key
    np.testing.assert_array_equal(inner[0][0], ITEMS[0])
    assert len(entries()) == 1


def test_two_processes_at_once() -> None:
    code = (
        "import sys, time, numpy as np\n"
        "from noiseloom.modalities.cache import cached_arrays\n"
        "def build(w):\n"
        "    for i in range(50): w.add(np.full(1000, i)); time.sleep(0.002)\n"
        "a = cached_arrays('test', {'race': 1}, build)\n"
        "print(float(sum(item.sum() for item in a)))\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == ["1225000.0"] * 3
    assert len(entries()) == 1


def test_a_cache_that_cannot_be_written_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CannotCache, match=r"cannot write the cache .*XDG_CACHE_HOME"):
        make()


def test_no_pickle_is_read() -> None:
    key = make().key
    file = cache_folder() / "test" / key / "data.npy"
    np.save(file, np.array([[object()]] * 5, dtype=object), allow_pickle=True)
    calls: list[int] = []
    make(calls=calls)
    assert calls == [1]


def test_bytes_are_kept_as_they_are() -> None:
    def build(writer: Writer) -> None:
        for length in (3, 0, 5):
            writer.add(np.arange(250, 250 + length, dtype=np.uint8))

    arrays = cached_arrays("test", {}, build, dtype="uint8")
    assert arrays.data.dtype == np.uint8
    assert [item.tolist() for item in arrays] == [[250, 251, 252], [], [250, 251, 252, 253, 254]]
