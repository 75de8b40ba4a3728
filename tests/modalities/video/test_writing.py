"""Clips that every player shows, or that come back bit by bit; previews that move; sheets that show every frame."""

import io
import os
import resource
import signal

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra 'video'")
pytest.importorskip("PIL", reason="needs the extra 'video'")
import av
from PIL import Image

from noiseloom.modalities.atomic import CannotWrite
from noiseloom.modalities.video import reading
from noiseloom.modalities.video.clip import Clip, VideoError
from noiseloom.modalities.video.reading import probe, read
from noiseloom.modalities.video.sheets import BACKGROUND, contact_sheet, overview
from noiseloom.modalities.video.writing import animation, write_mp4


def noise(frames=6, height=32, width=48, channels=3):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, channels), dtype=np.uint8)


def drifting(frames=8, height=64, width=64, channels=1):
    """A smooth wave that moves two pixels a frame."""
    x = np.arange(width) - 2 * np.arange(frames)[:, None]
    wave = 127.5 + 100 * np.sin(2 * np.pi * x / 32)
    return np.ascontiguousarray(
        np.broadcast_to(wave[:, None, :, None], (frames, height, width, channels)).round().astype(np.uint8)
    )


# ---- the artifact


def test_a_clip_says_what_it_is():
    clip = Clip(noise(5, 8, 12), 10.0, "a.mp4")
    assert (clip.seconds, clip.size, clip.channels, len(clip)) == (0.5, (8, 12), 3, 5)
    assert repr(clip) == "Clip('a.mp4', 5x8x12x3, 10 fps)"


@pytest.mark.parametrize(
    "frames", [np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 2), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_other_frames_are_no_clip(frames):
    with pytest.raises(ValueError, match=r"frames are \(T, H, W, 1 or 3\) of uint8"):
        Clip(frames, 10)


@pytest.mark.parametrize("fps", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_is_none(fps):
    with pytest.raises(ValueError, match="positive"):
        Clip(noise(), fps)


# ---- MP4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 48), (33, 51), (1, 1), (64, 64)])
@pytest.mark.parametrize("decord", [True, False])
def test_lossless_is_bit_for_bit(tmp_path, monkeypatch, channels, size, decord):
    if not decord:
        monkeypatch.setattr(reading, "_by_decord", lambda *_: None)
    frames = noise(5, *size, channels)
    clip = read(write_mp4(tmp_path / "a.mp4", Clip(frames, 12), quality=0))
    assert np.array_equal(clip.frames, np.broadcast_to(frames, clip.frames.shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_default_is_close_and_what_every_player_shows(tmp_path, channels):
    frames = drifting(channels=channels)
    path = write_mp4(tmp_path / "a.mp4", Clip(frames, 12))
    error = read(path).frames.astype(float) - frames
    assert 10 * np.log10(255**2 / (error**2).mean()) > 40  # dB
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert (stream.codec_context.name, stream.pix_fmt, stream.codec_context.has_b_frames) == (
            "h264",
            "yuv420p",
            False,
        )
        assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets)  # none waits for another
        assert packets[0].is_keyframe
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it plays before all of it is there


def test_black_white_and_colours_keep_their_places(tmp_path):
    colours = np.array([(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (6, 64, 64, 3))
    back = read(write_mp4(tmp_path / "a.mp4", Clip(frames, 5))).frames
    assert np.abs(back.astype(int) - frames).max() <= 3


def test_an_odd_size_is_made_even_by_its_edge(tmp_path):
    back = read(write_mp4(tmp_path / "a.mp4", Clip(drifting(4, 33, 51), 12), quality=10)).frames.astype(int)
    assert back.shape == (4, 34, 52, 3)
    assert np.abs(back[:, -1] - back[:, -2]).max() <= 8
    assert np.abs(back[:, :, -1] - back[:, :, -2]).max() <= 8


@pytest.mark.parametrize("fps", [1, 10, 12.5, 24000 / 1001, 30000 / 1001, 120, 0.25])
def test_rates_are_kept(tmp_path, fps):
    path = write_mp4(tmp_path / "a.mp4", Clip(noise(), fps))
    assert probe(path).fps == pytest.approx(fps, rel=1e-9)
    assert probe(path).notes == ()


def test_quality_is_a_size(tmp_path):
    sizes = [len(write_mp4(tmp_path / "a.mp4", Clip(noise(), 12), quality=q).read_bytes()) for q in (0, 10, 18, 30, 45)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_same_clip_gives_the_same_file(tmp_path):
    one, two = (write_mp4(tmp_path / name, Clip(noise(), 12)).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert one == two


def test_what_cannot_be_written(tmp_path):
    for shape in ((0, 8, 8, 3), (2, 0, 8, 3)):
        empty = Clip(np.zeros(shape, np.uint8), 12)
        with pytest.raises(VideoError, match=r"^a\.mp4: no frames to write$"):
            write_mp4(tmp_path / "a.mp4", empty)
        with pytest.raises(VideoError, match="no frames to write"):
            animation(empty)
    with pytest.raises(ValueError, match=r"quality is 0 \(lossless\) to 51, not 52"):
        write_mp4(tmp_path / "a.mp4", Clip(noise(), 12), quality=52)
    with pytest.raises(CannotWrite, match="No such file"):
        write_mp4(tmp_path / "none" / "a.mp4", Clip(noise(), 12))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # no file may grow beyond 2 kB
        with pytest.raises(CannotWrite, match="File too large"):
            write_mp4(tmp_path / "a.mp4", Clip(noise(30, 64, 64), 12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


# ---- previews and sheets


@pytest.mark.parametrize("channels", [1, 3])
def test_a_preview_moves_at_its_rate_and_is_enlarged(channels):
    content = animation(Clip(drifting(12, 48, 64, channels), 12))
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.n_frames, image.size, image.info["loop"]) == ("WEBP", 12, (192, 144), 0)
    clip = read(content)
    assert clip.seconds == pytest.approx(1.0, abs=0.002)
    expected = drifting(12, 48, 64).repeat(3, 1).repeat(3, 2)
    assert np.abs(clip.frames.astype(float) - expected).mean() < 6


def test_a_preview_of_one_frame():
    assert read(animation(Clip(noise(1, 200, 300), 10))).frames.shape == (1, 200, 300, 3)


def test_a_contact_sheet_shows_every_frame_in_order():
    values = np.linspace(60, 250, 20).astype(np.uint8)
    sheet = np.asarray(contact_sheet(Clip(np.broadcast_to(values[:, None, None, None], (20, 64, 64, 1)), 10)))
    tops, lefts = 8 + 152 * np.arange(3), 8 + 136 * np.arange(8)
    seen = [sheet[y + 64, x + 64, 0] for y in tops for x in lefts]
    assert seen[:20] == values.tolist()
    assert sheet[tops[2] + 64, lefts[4] + 64].tolist() == list(BACKGROUND)
    assert (sheet[136:160, 8:136] != BACKGROUND).any()  # its time


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (3, 500, 20, 1), (2, 20, 900, 3), (400, 16, 16, 1), (2, 1000, 1, 3)])
def test_sheets_of_any_shape(shape):
    clip = Clip(noise(*shape), 10)
    assert max(probe(animation(clip)).size) <= 1024
    sheet = contact_sheet(clip)
    assert sheet.width <= 1200
    assert sheet.height <= 3100
    assert overview([clip], ["a long caption that has no place here, whatever it says" * 3]).width <= 2700


def test_an_overview_has_a_row_for_each():
    first, last = (np.full((64, 64, 1), value, np.uint8) for value in (80, 250))
    clip = Clip(np.stack([first, *[first] * 20, last]), 10)
    image = np.asarray(overview([clip, None, clip], ["one", "failed", "two"]))
    bright = image[..., 0].max(1) == 250
    assert bright.sum() == 2 * 128  # two rows of tiles
    row = image[np.flatnonzero(bright)[64], :, 0]
    assert (row == 250).sum() == 128  # only the last of ten
    assert (row == 80).sum() == 9 * 128
