"""Clips to files: H.264 in MP4 by PyAV, animated WebP by Pillow."""

from __future__ import annotations

import errno
import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import replacing
from ..extras import require
from .clip import Clip, VideoError

QUALITY = 18  # x264's constant rate factor: hardly to be told from the original
_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
_LIMITED, _FULL, _BT601 = 1, 2, 6  # FFmpeg's numbers of the ranges and of the matrix


def check_quality(quality: int) -> None:
    """
    Raises:
        ValueError: no constant rate factor of x264.
    """
    if not 0 <= quality <= 51:
        raise ValueError(f"quality is 0 (lossless) to 51, not {quality}")


def write_mp4(path: Path, clip: Clip, *, quality: int = QUALITY) -> Path:
    """Write H.264 without B-frames, whole or not at all; the index comes first, so that it plays while it loads.

    Args:
        quality: x264's constant rate factor, 1 (best) to 51: colour at half resolution, which every player shows; an
            odd size is made even by its last row or column once more. 0: lossless, of any size, read back bit by bit
            (grey as three equal channels), which fewer players show.

    Raises:
        ValueError: another quality.
        VideoError: a clip of no frames or no pixels, or one that the encoder refuses.
        CannotWrite: a full disk, no permission.
    """
    av = require("av", "video")
    check_quality(quality)
    if not clip.frames.size:
        raise VideoError(path.name, "no frames to write")
    frames, height, width = clip.frames, *clip.size
    if quality and (height % 2 or width % 2):
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    grey = clip.channels == 1
    codec, pixels = ("libx264", "yuv420p") if quality else ("libx264", "gray") if grey else ("libx264rgb", "rgb24")
    with replacing(path) as partial:
        try:
            with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
                stream = container.add_stream(codec, rate=_rate(clip.fps))
                stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
                stream.options = {"crf": str(quality), "bf": "0"}
                stream.codec_context.thread_count = 1  # small frames are slower by several
                # said, because a player that is told nothing guesses by the size
                stream.codec_context.color_range = _LIMITED if quality else _FULL
                if quality:
                    stream.codec_context.colorspace = _BT601
                for array in frames:
                    container.mux(stream.encode(_frame(av, array, pixels)))
                container.mux(stream.encode(None))
        except av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            raise VideoError(path.name, f"cannot be written ({error.strerror})") from error
    return path


def animation(clip: Clip, *, side: int = 128) -> bytes:
    """An animated WebP that repeats for ever; a clip smaller than ``side`` pixels is enlarged by a whole factor.

    Raises:
        VideoError: a clip of no frames or no pixels.
    """
    if not clip.frames.size:
        raise VideoError(clip.name or "a clip", "no frames to write")
    scale = max(1, min(-(-side // min(clip.size)), 8 * side // max(clip.size)))  # a strip does not become a tower
    images = [picture(frame, scale) for frame in clip.frames]
    ends = np.rint(1000 * np.arange(1, len(images) + 1) / clip.fps).astype(int)  # whole milliseconds, without drift
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=np.diff(ends, prepend=0).tolist(),
        loop=0,
        quality=85,
        method=2,
    )
    return buffer.getvalue()


def picture(frame: np.ndarray, scale: int = 1) -> Any:
    """A Pillow image of a frame ``(H, W, 1 or 3)``, each pixel ``scale`` times as wide and high."""
    frame = frame[..., 0] if frame.shape[2] == 1 else frame
    return require("PIL.Image", "video").fromarray(frame.repeat(scale, 0).repeat(scale, 1))


def _frame(av: Any, array: np.ndarray, pixels: str) -> Any:
    """A frame in the encoder's pixel format."""
    given = "gray" if array.shape[2] == 1 else "rgb24"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array[..., 0] if given == "gray" else array), format=given)
    if given == "gray":
        frame.color_range = _FULL
    return frame if given == pixels else frame.reformat(format=pixels, dst_color_range=_LIMITED)


def _rate(fps: float) -> Fraction:
    """The rate as a fraction that a file can hold: 30000/1001 is found again in 29.97002997."""
    return Fraction(fps).limit_denominator(100_000) or Fraction(1, 100_000)
