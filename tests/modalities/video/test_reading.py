"""Any file that someone has: what is in it exactly, or one line that says why not."""

import io
import struct
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("av", reason="needs the extra 'video'")
pytest.importorskip("PIL", reason="needs the extra 'video'")
import av
from PIL import Image

from noiseloom.modalities.extras import data_folder
from noiseloom.modalities.places import tar_files
from noiseloom.modalities.video import reading
from noiseloom.modalities.video.clip import Clip, VideoError
from noiseloom.modalities.video.reading import IMAGE_FPS, probe, read
from noiseloom.modalities.video.writing import write_mp4

RED, WHITE = (255, 0, 0), (255, 255, 255)


def noise(frames=8, height=34, width=50, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, channels), dtype=np.uint8)


def shades(values, height=34, width=50):
    """Frames of one grey each."""
    return np.broadcast_to(np.uint8(values)[:, None, None, None], (len(values), height, width, 3))


def encoded(path, frames, codec, pixels, given="rgb24", times=None, fps=12, sound=0.0, streams=True, **options):
    """Bytes of a video of our own making; ``times`` in ms; so many seconds of sound beside it."""
    with av.open(str(path), "w") as container:
        if streams:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            stream.options = {key.replace("_", "-"): value for key, value in options.items()}
            if times is not None:
                stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if sound:
            audio = container.add_stream("aac", rate=16000, layout="mono")
        for index, array in enumerate(frames if streams else ()):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=given)
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        if streams:
            container.mux(stream.encode(None))
        if sound:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * sound)), np.float32), "fltp", "mono")
            samples.rate = 16000
            container.mux(audio.encode(samples))
            container.mux(audio.encode(None))
    return path.read_bytes()


def saved(images, kind, **options):
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}
    images[0].save(buffer, kind, **more, **options)
    return buffer.getvalue()


@pytest.fixture(params=["decord", "PyAV"])
def decoder(request, monkeypatch):
    """Both ways of decoding, of which decord refuses some sizes and is not everywhere."""
    if request.param == "decord":
        pytest.importorskip("decord", reason="needs the extra 'video'")
    else:
        monkeypatch.setattr(reading, "_by_decord", lambda *_: None)


# ---- what is in a file


@pytest.mark.parametrize("size", [(34, 50), (33, 51), (48, 96), (2, 2), (1, 7)])
def test_every_frame_is_read_as_it_was_of_any_size(tmp_path, decoder, size):
    frames = noise(7, *size)
    path = write_mp4(tmp_path / "a.mp4", Clip(frames, 12.5), quality=0)
    for content in (path, path.read_bytes()):
        clip = read(content)
        assert (clip.fps, clip.frames.tobytes()) == (12.5, frames.tobytes())
        info = probe(content)
        assert (info.frames, info.size, info.fps, info.channels) == (7, size, 12.5, 3)
        assert (info.container, info.audio, info.rotation, info.notes) == ("mp4", False, 0, ())
    assert read(path).name == "a.mp4"


@pytest.mark.parametrize("part", [(0, 3, 1), (2, 5, 1), (5, None, 1), (0, None, 3), (1, 6, 2), (-2, None, 1)])
def test_a_part_of_the_frames(tmp_path, decoder, part):
    frames = noise(7)
    path = write_mp4(tmp_path / "a.mp4", Clip(frames, 12), quality=0)
    start, stop, step = part
    clip = read(path, start=start, stop=stop, step=step)
    assert np.array_equal(clip.frames, frames[start:stop:step])
    assert clip.fps == 12 / step


def test_frames_that_are_not_there(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", Clip(noise(3), 12), quality=0)
    with pytest.raises(VideoError, match=r"^a\.mp4: no frames in 3:, it has 3$"):
        read(path, start=3)


def test_one_frame(tmp_path, decoder):
    frames = noise(1)
    path = write_mp4(tmp_path / "a.mp4", Clip(frames, 10), quality=0)
    clip = read(path)
    assert (clip.fps, clip.frames.tobytes(), probe(path).frames) == (10, frames.tobytes(), 1)


@pytest.mark.parametrize(
    "name, codec",
    [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.mov", "mpeg4")],
)
def test_containers(tmp_path, decoder, name, codec):
    frames = shades([20, 60, 100, 140, 180, 220])
    content = encoded(tmp_path / name, frames, codec, "yuv420p", fps=25, b="2M")
    clip, info = read(content), probe(content)
    assert (clip.frames.shape, clip.fps, info.frames) == (frames.shape, 25, 6)
    assert np.abs(clip.frames.mean((1, 2, 3)) - frames.mean((1, 2, 3))).max() < 3
    assert info.container == {"a.avi": "avi", "a.ts": "mpegts", "a.mov": "mp4"}.get(name, "matroska")


def test_a_program_stream_is_decoded_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_by_decord", lambda *_: pytest.fail("random access gives other frames"))
    frames = shades(np.linspace(30, 230, 40))
    content = encoded(tmp_path / "a.mpg", frames, "mpeg1video", "yuv420p", fps=25)
    clip = read(content, start=20, stop=23)
    assert np.abs(clip.frames.mean((1, 2, 3)) - frames[20:23].mean((1, 2, 3))).max() < 3
    assert probe(content).frames == 40


def test_b_frames_are_in_the_order_in_which_they_are_shown(tmp_path, decoder):
    frames = shades(np.linspace(30, 230, 20))
    content = encoded(tmp_path / "a.mp4", frames, "libx264", "yuv420p", bf="3", b_adapt="0")
    assert np.abs(read(content).frames.mean((1, 2, 3)) - frames.mean((1, 2, 3))).max() < 3


def test_both_decoders_give_the_same_pixels(tmp_path, monkeypatch):
    pytest.importorskip("decord", reason="needs the extra 'video'")
    content = encoded(tmp_path / "a.mp4", noise(6), "libx264", "yuv420p", crf="30")
    one = read(content)
    monkeypatch.setattr(reading, "_by_decord", lambda *_: None)
    assert np.array_equal(one.frames, read(content).frames)


def test_sound_is_known(tmp_path):
    content = encoded(tmp_path / "a.mp4", noise(6), "libx264", "yuv420p", sound=2.0)
    assert probe(content).audio
    assert len(read(content)) == 6


def test_variable_frame_rate_is_resampled_to_its_mean(tmp_path, decoder):
    times = [0, 100, 200, 300, 700, 800, 900]  # the fourth is held; 7 frames in 1.0 s
    content = encoded(tmp_path / "a.mkv", shades([20, 50, 80, 110, 140, 170, 200]), "libx264", "yuv420p", times=times)
    clip, info = read(content), probe(content)
    assert info.frames == len(clip) == 7
    assert clip.fps == info.fps == pytest.approx(7 / 1.0, rel=0.02)
    middles = (np.arange(7) + 0.5) / info.fps * 1000
    expected = [20 + 30 * (np.searchsorted(times, middle, side="right") - 1) for middle in middles]
    assert np.abs(clip.frames.mean((1, 2, 3)) - expected).max() < 3
    assert expected.count(110) == 3  # it is shown as long as it was
    assert info.notes == (f"variable frame rate: resampled to its mean of {clip.fps:.3g} frames a second",)


def test_times_that_only_jitter_are_even(tmp_path):
    frames = shades([20, 60, 100, 140, 180])
    content = encoded(tmp_path / "a.mkv", frames, "libx264", "yuv420p", times=[0, 33, 67, 100, 133], fps=30)
    assert probe(content).notes == ()
    assert read(content).fps == pytest.approx(30, rel=0.01)


TURNED = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # the display matrix's first four


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path, decoder, degrees):
    frames = noise(4, 34, 50)
    content = bytearray(write_mp4(tmp_path / "a.mp4", Clip(frames, 12), quality=0).read_bytes())
    a, b, c, d = (value * 65536 for value in TURNED[degrees])
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip, info = read(bytes(content)), probe(bytes(content))
    assert (info.rotation, info.size) == (degrees, (34, 50) if degrees == 180 else (50, 34))
    assert np.array_equal(clip.frames, np.rot90(frames, -degrees // 90, axes=(1, 2)))


# ---- transparency lies on white


def see_through(frames=3, height=34, width=50):
    """RGBA: the upper half cannot be seen, the lower is red."""
    rgba = np.zeros((frames, height, width, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[:, height // 2 :, :, 3] = 255
    return rgba


def lies_on_white(frames, tolerance):
    half = frames.shape[1] // 2
    return (
        np.abs(frames[:, : half - 4].astype(int) - WHITE).max() <= tolerance
        and np.abs(frames[:, half + 4 :].astype(int) - RED).max() <= tolerance
    )


@pytest.mark.parametrize(
    "name, codec, pixels, options",
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {"auto_alt_ref": "0", "crf": "10"}),
        ("a.mkv", "ffv1", "bgra", {}),
        ("a.mov", "qtrle", "argb", {}),
    ],
)
def test_transparent_videos(tmp_path, name, codec, pixels, options):
    content = encoded(tmp_path / name, see_through(), codec, pixels, given="rgba", **options)
    clip = read(content)
    assert clip.frames.shape == (3, 34, 50, 3)
    assert lies_on_white(clip.frames, 12 if codec == "libvpx-vp9" else 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("frames", [1, 3])
def test_transparent_images(kind, frames):
    moved = [Image.fromarray(np.roll(rgba, 3 * k, 1)) for k, rgba in enumerate(see_through(frames))]
    options = {"WEBP": {"lossless": True, "exact": True}, "GIF": {"disposal": 2}}.get(kind, {})
    clip = read(saved(moved, kind, **options))
    assert lies_on_white(clip.frames[:, :, 10:], 0)


def test_half_transparent_is_half_white():
    clip = read(saved([Image.new("RGBA", (4, 4), (0, 100, 255, 128))], "PNG"))
    assert clip.frames[0, 0, 0].tolist() == [127, 177, 255]


# ---- images


def test_a_gif(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]
    content = saved([Image.new("RGB", (5, 3), c) for c in colours], "GIF", duration=[50] * 4, loop=0)
    (tmp_path / "a.mp4").write_bytes(content)  # it is what it holds, not what it is called
    clip, info = read(tmp_path / "a.mp4"), probe(tmp_path / "a.mp4")
    assert (clip.fps, info.frames, info.container, info.size, info.notes) == (20, 4, "gif", (3, 5), ())
    assert clip.frames[:, 0, 0].tolist() == [list(c) for c in colours]


def test_a_gif_of_uneven_times():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    content = saved([Image.new("RGB", (5, 3), c) for c in colours], "GIF", duration=[100, 700, 100], loop=0)
    clip, info = read(content), probe(content)
    assert clip.fps == pytest.approx(3 / 0.9)
    assert clip.frames[:, 0, 0].tolist() == [[0, 255, 0]] * 3  # at 0.15, 0.45 and 0.75 s
    assert info.notes[0].startswith("variable frame rate")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_an_image_is_a_clip_of_one_frame(kind):
    frame = noise(1, 33, 51)[0]
    content = saved([Image.fromarray(frame)], kind, **({"lossless": True} if kind == "WEBP" else {}))
    clip = read(content)
    assert np.array_equal(clip.frames[0], frame)
    assert (clip.fps, probe(content).frames) == (IMAGE_FPS, 1)


@pytest.mark.parametrize("mode, value, expected", [("L", 7, 7), ("1", 1, 255), ("I;16", 65535, 255), ("I;16", 257, 1)])
def test_grey_images_have_one_channel(mode, value, expected):
    image = Image.new(mode, (4, 3), value)
    clip = read(saved([image], "PNG"))
    assert clip.frames.shape == (1, 3, 4, 1)
    assert (clip.frames == expected).all()


def test_a_photo_is_turned_as_its_camera_says():
    frame = np.zeros((8, 16, 3), np.uint8)
    frame[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved([Image.fromarray(frame)], "JPEG", exif=exif, quality=100)
    clip, info = read(content), probe(content)
    assert (info.rotation, info.size) == (90, (16, 8))
    assert np.abs(clip.frames[0].astype(int) - np.rot90(frame, -1)).max() < 8


# ---- what is no video


@pytest.fixture
def video(tmp_path):
    """40 frames, the index first."""
    return write_mp4(tmp_path / "good.mp4", Clip(noise(40), 12), quality=10).read_bytes()


def refused(content, reason, name="bad.mp4"):
    for function in (read, probe):
        with pytest.raises(VideoError, match=reason) as caught:
            function(content, name)
        assert str(caught.value).startswith(f"{name}: ")
        assert caught.value.reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_cut_in_its_frames(video, decoder):
    assert video.index(b"moov") < video.index(b"mdat")
    refused(video[: len(video) * 6 // 10], r"cut short: 2\d of 40 frames are there$")
    refused(video[:-5], "cut short: 40 of 40 frames are there")


def test_cut_before_its_index(tmp_path):
    content = encoded(tmp_path / "a.mp4", noise(40), "libx264", "yuv420p")
    assert content.index(b"mdat") < content.index(b"moov")
    refused(content[: len(content) // 2], r"its index \(the moov box\) is missing")
    refused(content[:10], "moov")


@pytest.mark.parametrize("name, codec", [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_other_containers_cut(tmp_path, name, codec):
    content = encoded(tmp_path / name, noise(40), codec, "yuv420p", fps=25)
    refused(content[: len(content) // 2], "cut short")


def test_frames_that_are_rubbish(video):
    start = video.index(b"mdat") + 4
    refused(video[:start] + bytes(len(video) - start), "decoded|damaged")


def test_empty_file(tmp_path):
    refused(b"", "the file is empty")
    (tmp_path / "a.mp4").touch()
    refused(tmp_path / "a.mp4", "the file is empty", "a.mp4")


@pytest.mark.parametrize(
    "text", [b"just a text\n" * 50, b"BM", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\0"]
)
def test_a_text_that_is_called_mp4(text):
    refused(text, r"not (a video|an image) that can be read")


def test_playlists_open_nothing(tmp_path, video):
    (tmp_path / "secret.mp4").write_bytes(video)
    lists = (
        f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n",
    )
    for text in lists:
        (tmp_path / "list.mp4").write_text(text)
        refused(tmp_path / "list.mp4", "not a video that can be read", "list.mp4")


def test_sound_only(tmp_path):
    content = encoded(tmp_path / "a.mp4", noise(0), "", "", sound=1.0, streams=False)
    refused(content, "it has no pictures, only sound")


def test_no_frames(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height = stream.width = 16
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    refused((tmp_path / "a.mp4").read_bytes(), "it has no pictures")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_an_image_cut_short(kind):
    content = saved([Image.fromarray(noise(1)[0])], kind)
    refused(content[: len(content) // 2], "not an image that can be read")


def test_no_such_file(tmp_path):
    for name in ("none.mp4", "none.png"):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / name)


# ---- real files


@pytest.mark.parametrize(
    "name, frames", [("fluent_emoji_anim", range(16, 37)), ("mrms_radar", [36]), ("grid_s1_av", [37])]
)
def test_real_clips_from_the_middle_of_a_tar(name, frames):
    path = data_folder() / f"{name}.tar"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {path.parent}")
    places = [place for member, place in tar_files(path).items() if member.endswith(".mp4")][:3]
    assert places
    for place in places:
        content = place.read()
        clip, info = read(content), probe(content)
        assert (len(clip), clip.size) == (info.frames, (128, 128))
        assert info.frames in frames
        assert info.audio == (name == "grid_s1_av")
        assert info.notes == ()
