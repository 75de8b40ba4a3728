"""What an input gives to each task, read from real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra 'video'")
from noiseloom.modalities.video.clip import Clip, VideoError
from noiseloom.modalities.video.inputs import Given, given, taken
from noiseloom.modalities.video.reading import read
from noiseloom.modalities.video.request import VideoRequest
from noiseloom.modalities.video.writing import write_mp4

SIZE, USUAL, FPS = (16, 16), 9, 4.0


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """12 frames of 16 x 16 at 8 fps, each a shade of its own, as they are read from a file."""
    shades = np.arange(10, 250, 20, dtype=np.uint8)
    frames = np.repeat(shades, 16 * 16).reshape(12, 16, 16, 1) + np.arange(4, dtype=np.uint8).repeat(4)[:, None]
    write_mp4(tmp_path / "clip.mp4", Clip(frames, 8.0), quality=1)
    own = read(tmp_path / "clip.mp4")
    return Clip(own.frames[..., :1], own.fps, str(tmp_path / "clip.mp4"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def ask(path: Any, place: int = 0, size: tuple[int, int] = SIZE, colours: int = 1, **options: Any) -> Given:
    request = VideoRequest(input=path if isinstance(path, list) else str(path), **options)
    return given(request, taken(request, place, size, colours, FPS), USUAL)


def frames_known(it: Given) -> list[int]:
    """The frames that are known; there are no others of which a part is."""
    whole = it.known.flatten(1).all(1)
    assert (it.known.flatten(1).any(1) == whole).all()
    return whole.nonzero().flatten().tolist()


def test_prediction_keeps_the_beginning(clip: Clip) -> None:
    it = ask(clip.name, known=3)
    assert (it.fps, it.strength) == (8.0, 1.0)
    assert frames_known(it) == [0, 1, 2]
    assert it.frames.shape == clip.frames.shape  # as long as the input
    assert np.array_equal(it.frames[:3], clip.frames[:3])
    assert not it.frames[3:].any()  # what is to be predicted is not there to be seen
    assert frames_known(ask(clip.name, known=3, frames=5)) == [0, 1, 2]
    assert len(ask(clip.name, known=3, frames=30).frames) == 30


@pytest.mark.parametrize(("length", "usual", "total"), [(4, 9, 9), (9, 9, 13), (12, 9, 16), (1, 1, 2), (4, 17, 17)])
def test_an_input_kept_whole_is_continued(length: int, usual: int, total: int) -> None:
    it = given(VideoRequest(input="x"), Clip(np.ones((length, 4, 4, 1), np.uint8), 8.0), usual)
    assert len(it.frames) == total
    assert frames_known(it) == list(range(length))


def test_images_begin_and_end(clip: Clip, picture: Path) -> None:
    it = ask(clip.name, task="image")
    assert (frames_known(it), len(it.frames)) == ([0], 12)
    it = ask(picture, task="image")
    assert (frames_known(it), len(it.frames), it.fps) == ([0], USUAL, FPS)  # a picture has no rate
    assert (it.frames[0] == 200).all()
    assert frames_known(ask(picture)) == [0]  # to predict from it is the same
    it = ask(clip.name, task="first_last", frames=6)
    assert frames_known(it) == [0, 5]
    assert np.array_equal(it.frames[[0, 5]], clip.frames[[0, 11]])


def test_two_images_are_the_ends_of_one_video(clip: Clip, picture: Path) -> None:
    from PIL import Image

    other = picture.with_name("other.png")
    Image.fromarray(np.full((64, 40), 30, np.uint8)).save(other)  # of another size, grey
    for place in (0, 1):
        it = ask([str(picture), str(other)], place, task="first_last")
        assert (frames_known(it), len(it.frames), it.fps) == ([0, USUAL - 1], USUAL, FPS)
        assert (it.frames[0] == 200).all()
        assert (it.frames[-1] == 30).all()
    (a, b) = (ask([clip.name, clip.name], place, task="first_last") for place in (0, 1))  # two videos have ends each
    assert len(a.frames) == len(b.frames) == 12


def test_interpolation_spreads_the_frames(clip: Clip) -> None:
    it = ask(clip.name, task="interpolate", every=3)
    assert it.fps == 24.0
    assert len(it.frames) == 11 * 3 + 1
    assert frames_known(it) == list(range(0, 34, 3))
    assert np.array_equal(it.frames[::3], clip.frames)
    assert len(ask(clip.name, task="interpolate", every=3, frames=8).frames) == 8
    it = ask(clip.name, task="interpolate", every=2, fps=8)  # so the input is taken at 4 fps
    assert (it.fps, len(it.frames)) == (8.0, 11)
    assert np.array_equal(it.frames[::2], clip.frames[::2])


def test_boxes_are_filled_or_kept(clip: Clip) -> None:
    hole = ask(clip.name, task="inpaint", box=[2, 4, 8, 6])
    kept = ask(clip.name, task="outpaint", box=[2, 4, 8, 6])
    assert (hole.known == ~kept.known).all()
    assert kept.known.sum() == 12 * 8 * 6
    assert kept.known[:, 2:10, 4:10].all()
    assert np.array_equal(hole.frames, clip.frames)
    assert len(ask(clip.name, task="inpaint", box=[2, 4, 8, 6], frames=5).frames) == 5


def test_an_image_can_be_filled_and_varied(picture: Path) -> None:
    it = ask(picture, task="inpaint", box=[0, 0, 4, 4])
    assert it.frames.shape == (1, 16, 16, 1)
    assert it.known.sum() == 16 * 16 - 16
    assert ask(picture, task="vary").frames.shape == (1, 16, 16, 1)


def test_variation_starts_from_the_input(clip: Clip) -> None:
    it = ask(clip.name, task="vary", strength=0.3)
    assert it.strength == 0.3
    assert not it.known.any()
    assert np.array_equal(it.frames, clip.frames)
    assert ask(clip.name, task="vary").strength == 0.6
    assert ask(clip.name, task="vary", strength=0).known.all()  # nothing is to be changed


def test_an_asked_rate_is_that_of_the_input_too(clip: Clip) -> None:
    it = ask(clip.name, known=2, fps=4)
    assert (it.fps, len(it.frames)) == (4.0, 6)
    assert np.array_equal(it.frames[:2], clip.frames[[0, 2]])
    assert ask(clip.name, task="vary", fps=16).frames.shape[0] == 24


def test_size_and_colours_are_those_of_the_model(clip: Clip) -> None:
    it = ask(clip.name, size=(8, 24), colours=3)
    assert it.frames.shape[1:] == (8, 24, 3)
    assert np.ptp(it.frames, axis=-1).max() == 0


def test_several_inputs_are_taken_in_turn_and_only_then_read(clip: Clip, picture: Path, tmp_path: Path) -> None:
    paths = [clip.name, str(picture), str(tmp_path / "nowhere.mp4")]
    assert [len(ask(paths, place, frames=20, known=1).frames) for place in (0, 1, 3)] == [20, 20, 20]
    assert frames_known(ask(paths, 0, frames=20)) == list(range(12))
    assert frames_known(ask(paths, 4, frames=20)) == [0]
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*nowhere.mp4'"):
        ask(paths, 2)


def test_a_file_that_changed_is_read_again(clip: Clip) -> None:
    before = ask(clip.name, known=1)
    write_mp4(Path(clip.name), Clip(255 - clip.frames, 8.0))
    os.utime(clip.name, ns=(1, 1))
    assert not np.array_equal(ask(clip.name, known=1).frames, before.frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": 13}, "clip.mp4 has 12 frames, fewer than known=13"),
        ({"frames": 12}, "12 frames of clip.mp4 are kept, and 12 asked for: nothing to make. known=N keeps fewer"),
        ({"frames": 3, "known": 3}, "nothing to make"),
        ({"task": "image", "frames": 1}, "nothing to make. frames=2 or more"),
        ({"task": "first_last", "frames": 2}, "nothing to make. frames=3 or more"),
        ({"task": "vary", "frames": 13}, "clip.mp4 gives 12 frames for task=vary, but 13 are asked for"),
        ({"task": "interpolate", "every": 2, "frames": 24}, "gives 23 frames for task=interpolate, but 24"),
        ({"task": "interpolate", "every": 2, "frames": 1}, "with 1 frame leaves nothing to make"),
        ({"task": "inpaint", "box": [0, 0, 17, 4]}, r"the box \[0, 0, 17, 4\] does not lie within frames of 16 x 16"),
        ({"task": "inpaint", "box": [14, 0, 4, 4]}, "does not lie within"),
        ({"task": "inpaint", "box": [0, 0, 0, 4]}, "does not lie within"),
        ({"task": "inpaint", "box": [0, 0, 16, 16]}, "leaves nothing to go by"),
        ({"task": "outpaint", "box": [0, 0, 16, 16]}, "leaves nothing to make"),
    ],
)
def test_what_an_input_cannot_give(clip: Clip, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ask(clip.name, **options)
    assert "\n" not in str(error.value)


def test_tasks_that_a_picture_is_too_little_for(picture: Path) -> None:
    for options, message in (
        ({"task": "first_last"}, r"picture.png has one frame: give a video, or two images as input=\[first.png"),
        ({"task": "interpolate", "every": 2}, "nothing between the frames of picture.png: it has one"),
        ({"known": 2}, "picture.png has 1 frames, fewer than known=2"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(picture, **options)  # type: ignore[arg-type]


def test_files_that_are_no_video(tmp_path: Path, clip: Clip) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ask(tmp_path)  # a folder
    (tmp_path / "text.mp4").write_text("not a video\n")
    (tmp_path / "cut.mp4").write_bytes(Path(clip.name).read_bytes()[:700])
    (tmp_path / "empty.mp4").touch()
    for name in ("text", "cut", "empty"):
        with pytest.raises(VideoError, match=rf"{name}\.mp4: ") as error:
            ask(tmp_path / f"{name}.mp4")
        assert "\n" not in str(error.value)
