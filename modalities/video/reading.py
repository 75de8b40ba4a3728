"""Clips from files: what decord opens, else what PyAV opens; images and animations by Pillow.

A file is first looked through without decoding: its packets' times are its exact count of frames and its rate. Frames
that are not evenly spaced in time are resampled to their mean rate; a display rotation is applied; transparent pixels
lie on white.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import require
from .clip import Clip, VideoError

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".3gp", ".ogv", ".mxf", ".y4m", ".ivf"),
)
SUFFIXES = VIDEOS + IMAGES

IMAGE_FPS = 1.0  # of a picture that does not move
_SIGNATURES = (b"GIF8", b"\x89PNG\r\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
# Playlists, which name other files and places in the network, are not among them.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,yuv4mpegpipe,ivf,h264,hevc,m4v,"
    "nut,rm,dv,mp3,wav,flac,aac"
)
_BOXES = (b"ftyp", b"mdat", b"free", b"wide", b"moov")  # what an MP4 or MOV begins with
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these pass over transparency
_HELD = 0.1  # s, how long browsers show a GIF's frame that says 0


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, as :func:`read` gives it.

    Attributes:
        frames: how many, counted.
        fps: frames a second, the mean where it varies.
        size: height and width, rotated.
        channels: 1 where the file is of grey, else 3.
        rotation: degrees clockwise that were applied.
        audio: whether it has sound.
        container: of the file: "mp4", "gif".
        notes: what is odd, a line each.
    """

    frames: int
    fps: float
    size: tuple[int, int]
    channels: int
    rotation: int = 0
    audio: bool = False
    container: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """A file that was looked through: ``shown[k]`` is its frame to show k-th, ``decode`` gives frames by index."""

    info: VideoInfo
    shown: np.ndarray
    decode: Callable[[np.ndarray], np.ndarray]


def read(content: bytes | Path, name: str = "", *, start: int = 0, stop: int | None = None, step: int = 1) -> Clip:
    """The frames ``start:stop:step`` of a video, an image or an animation.

    Args:
        content: of a file, or its path.
        name: of the clip and in messages; by default the path's.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: it is no video, has no frames in this range, is damaged or cut short.
    """
    name = _name(content, name)
    found = _find(content, name)
    chosen = found.shown[start:stop:step]
    if not len(chosen):
        raise VideoError(name, f"no frames in {start}:{'' if stop is None else stop}, it has {len(found.shown)}")
    places, order = np.unique(chosen, return_inverse=True)
    frames = found.decode(places)
    # a repeated frame is a copy; where none is, there is nothing to copy
    frames = frames if np.array_equal(order, np.arange(len(places))) else frames[order]
    return Clip(frames, found.info.fps / step, name)


def probe(content: bytes | Path, name: str = "") -> VideoInfo:
    """What a file holds, without decoding more than its first frame (of images, all).

    Raises:
        FileNotFoundError, VideoError: see :func:`read`.
    """
    return _find(content, _name(content, name)).info


def _name(content: bytes | Path, name: str) -> str:
    return name or ("a video" if isinstance(content, bytes) else Path(content).name)


def _find(content: bytes | Path, name: str) -> _Found:
    if isinstance(content, bytes):
        head = content[:16]
    else:
        with Path(content).open("rb") as file:
            head = file.read(16)
    if not head:
        raise VideoError(name, "the file is empty")
    if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return _find_image(content, name)
    return _find_video(content, name, head)


def _source(content: bytes | Path) -> Any:
    return io.BytesIO(content) if isinstance(content, bytes) else os.fspath(content)


def _evenly(starts: np.ndarray, end: float) -> np.ndarray:
    """Which frame is shown in the middle of each of n equal parts of the whole time, n the number of frames.

    Times that only jitter, by less than half a frame, are even: each frame is shown once.
    """
    n = len(starts)
    middles = starts[0] + (np.arange(n) + 0.5) * (end - starts[0]) / n
    return np.searchsorted(starts, middles, side="right") - 1


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """``(..., 4)`` to ``(..., 3)`` uint8: ``c a + 255 (1 - a)``."""
    alpha = rgba[..., 3:].astype(np.uint16)
    blended: np.ndarray = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return blended.astype(np.uint8)


# ---- images and animations


def _find_image(content: bytes | Path, name: str) -> _Found:
    pillow = require("PIL.Image", "video")
    turned = require("PIL.ImageOps", "video").exif_transpose
    frames, held = [], []
    try:
        with pillow.open(_source(content)) as image:
            container, orientation = str(image.format).lower(), image.getexif().get(0x0112, 1)
            grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                frames.append(_pixels(turned(image), grey))
                held.append((image.info.get("duration") or 1000 * _HELD) / 1000)
    except (OSError, SyntaxError, ValueError, EOFError, pillow.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise VideoError(name, f"not an image that can be read ({_told(error)})") from error
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(name, "its pages are of different sizes")
    ends = np.cumsum(held)
    shown, fps = _evenly(ends - held, ends[-1]), len(frames) / float(ends[-1]) if len(frames) > 1 else IMAGE_FPS
    info = VideoInfo(
        len(frames),
        fps,
        frames[0].shape[:2],
        frames[0].shape[2],
        rotation={3: 180, 6: 90, 8: 270}.get(orientation, 0),
        container=container,
        notes=_uneven(shown, fps),
    )
    return _Found(info, shown, np.stack(frames).__getitem__)


def _pixels(image: Any, grey: bool) -> np.ndarray:
    """``(H, W, 1 or 3)`` of one frame."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        return (np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)[..., None]
    if image.has_transparency_data:
        rgb = _over_white(np.asarray(image.convert("RGBA")))
        return rgb[..., :1] if grey else rgb
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


# ---- videos


def _find_video(content: bytes | Path, name: str, head: bytes) -> _Found:
    av = require("av", "video")
    with _opened(content, name, head) as (container, stream):
        first, packets, cut, starts, ends = None, 0, False, [], []
        try:
            for packet in container.demux(stream):
                if packet.size or packet.dts is not None:  # not the mark of the end
                    packets, cut = packets + 1, packet.is_corrupt
                if packet.size and not packet.is_discard:
                    starts.append(packet.pts)
                    ends.append(None if packet.pts is None else packet.pts + (packet.duration or 0))
                if first is None:
                    first = next(iter(packet.decode()), None)
        except av.FFmpegError as error:
            raise VideoError(name, f"damaged or cut short ({_told(error)})") from error
        if not starts:
            raise VideoError(name, "it has no frames")
        if stream.frames > packets or cut:
            raise VideoError(name, f"cut short: {packets} of {max(stream.frames, packets)} frames are there")
        if first is None:
            raise VideoError(name, "none of its frames can be decoded")
        shown, fps = _times(stream, starts, ends, name, container)
        described = str(first.format.name)
        alpha = _has_alpha(stream) or any(part.is_alpha for part in first.format.components)
        turns, size = round(first.rotation / 90), (first.height, first.width)
        notes = list(_uneven(shown, fps))
        if stream.sample_aspect_ratio not in (None, 0, 1):
            notes.append(f"its pixels are not square ({stream.sample_aspect_ratio}) and are taken as if they were")
        if first.rotation % 90:
            notes.append(f"its rotation by {-first.rotation} degrees is taken as {-90 * turns}")
        info = VideoInfo(
            len(starts),
            fps,
            size[::-1] if turns % 2 else size,
            1 if described.startswith("gray") else 3,
            -90 * turns % 360,
            bool(container.streams.audio),
            container.format.name.split(",")[1 if container.format.name.startswith("mov,") else 0],
            tuple(notes),
        )

    def decode(places: np.ndarray) -> np.ndarray:
        frames = None
        # random access into an MPEG program stream gives other frames than decoding in order; decord drops alpha
        if info.container != "mpeg" and not alpha:
            frames = _by_decord(content, info, places)
        return _by_av(content, name, head, info, alpha, places) if frames is None else frames

    return _Found(info, shown, decode)


@contextmanager
def _opened(content: bytes | Path, name: str, head: bytes) -> Iterator[tuple[Any, Any]]:
    """An open container and its stream of pictures, decoded by one thread."""
    av = require("av", "video")
    try:
        container = av.open(_source(content), options={"format_whitelist": _DEMUXERS})
    except av.FFmpegError as error:
        if head[4:8] in _BOXES:
            raise VideoError(name, "cut short or damaged: its index (the moov box) is missing") from error
        raise VideoError(name, f"not a video that can be read ({_told(error)})") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise VideoError(name, f"it has no pictures{', only sound' if container.streams.audio else ''}")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(name, "its codec is not known")
        stream.codec_context.thread_count = 1
        yield container, stream


def _times(
    stream: Any, starts: list[int | None], ends: list[int | None], name: str, container: Any
) -> tuple[np.ndarray, float]:
    """Which frame is shown when, and how many a second."""
    told = float(stream.average_rate or stream.guessed_rate or 25)
    if None in starts:  # raw streams know only a rate
        return np.arange(len(starts)), told
    begins, base = np.sort(np.array(starts, np.float64)) * float(stream.time_base), float(stream.time_base)
    end = max(max(stop for stop in ends if stop is not None) * base, begins[-1])
    if end == begins[-1]:  # the last frame's length is not said: as the others
        end += (begins[-1] - begins[0]) / (len(begins) - 1) if len(begins) > 1 else 1 / told
    said = _seconds_said(stream, container) if "matroska" in container.format.name else 0.0
    if end - begins[0] < 0.95 * said - 2 / told:
        raise VideoError(name, f"cut short: {end - begins[0]:.2f} of {said:.2f} s are there")
    fps = len(begins) / (end - begins[0])
    return _evenly(begins, end), told if abs(fps / told - 1) < 0.02 else float(fps)


def _seconds_said(stream: Any, container: Any) -> float:
    """The length of the stream that the header of a Matroska file promises, or 0."""
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (KeyError, ValueError):
        return 0.0 if container.streams.audio else (container.duration or 0) / 1e6


def _by_decord(content: bytes | Path, info: VideoInfo, places: np.ndarray) -> np.ndarray | None:
    """Frames by their sorted indices, or None where decord is missing or cannot (some widths, some codecs)."""
    try:
        import decord
    except (ImportError, OSError):  # there are no wheels for every machine
        return None
    decord.logging.set_level(decord.logging.QUIET)  # what is wrong is said by an error
    try:
        reader = decord.VideoReader(_source(content), num_threads=1)
        if len(reader) != info.frames:
            return None
        frames: np.ndarray = reader.get_batch(places.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, ValueError):
        return None
    return frames[..., : info.channels] if frames.shape == (len(places), *info.size, 3) else None


def _by_av(
    content: bytes | Path, name: str, head: bytes, info: VideoInfo, alpha: bool, places: np.ndarray
) -> np.ndarray:
    """Frames by their sorted indices, decoded in order."""
    av = require("av", "video")
    # not "rgba": libswscale fills the last columns of some widths (16 k + 1 to 4) with others' pixels
    pixels = "gbrap" if alpha else "gray" if info.channels == 1 else "rgb24"
    height, width = info.size[::-1] if info.rotation % 180 else info.size
    out, count = [], 0
    wanted = set(places.tolist())
    with _opened(content, name, head) as (container, stream):
        decoder = _alpha_decoder(stream) if _has_alpha(stream) else stream.codec_context
        try:
            for packet in container.demux(stream):
                for frame in decoder.decode(packet if packet.size else None):
                    if count in wanted:
                        array = frame.to_ndarray(format=pixels, width=width, height=height)
                        array = _over_white(array) if alpha else array.reshape(height, width, -1)
                        out.append(np.rot90(array, -info.rotation // 90))
                    count += 1
                if len(out) == len(wanted):
                    break
        except av.FFmpegError as error:
            raise VideoError(name, f"damaged: frame {count} cannot be decoded ({_told(error)})") from error
    if len(out) < len(wanted):
        raise VideoError(name, f"damaged: {count} of {info.frames} frames can be decoded")
    return np.stack(out)


def _has_alpha(stream: Any) -> bool:
    """Whether transparency lies beside the pictures, as in WebM."""
    return stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in _ALPHA_DECODERS


def _alpha_decoder(stream: Any) -> Any:
    return require("av", "video").codec.CodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r")


def _uneven(shown: np.ndarray, fps: float) -> tuple[str, ...]:
    if np.array_equal(shown, np.arange(len(shown))):
        return ()
    return (f"variable frame rate: resampled to its mean of {fps:.3g} frames a second",)


def _told(error: Exception) -> str:
    """What FFmpeg or Pillow said, without the names of their buffers."""
    text = str(getattr(error, "strerror", None) or error)
    return text.split(" <_io.")[0].rstrip(": .") or "no reason given"
