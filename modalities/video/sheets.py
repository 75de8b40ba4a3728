"""Pictures of clips: every frame of one with its time, and a row of frames for each of many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ..extras import require
from .clip import Clip
from .writing import picture

BACKGROUND, _TEXT, _SOFT = (19, 22, 31), (214, 219, 228), (152, 162, 179)
_GAP, _LINE, _SIZE = 8, 24, 15  # pixels between two frames, of a line of text, of its letters
_WIDTH = 1200  # of a sheet, where it has several columns
_TILE = 128, 256  # pixels of a frame at most, down and across
_FRAMES, _EACH = 160, 10  # frames at most of one clip, and of each of many


def contact_sheet(clip: Clip) -> Any:
    """A Pillow image of all frames in reading order with their times; of more than 160, as many evenly spaced ones."""
    chosen = _evenly(len(clip), _FRAMES)
    tiles = [_tile(clip.frames[index]) for index in chosen]
    width, height = tiles[0].width + _GAP, tiles[0].height + _LINE
    columns = min(len(tiles), max(1, (_WIDTH - _GAP) // width))
    image, pen = _canvas(columns * width + _GAP, -(-len(tiles) // columns) * height + _GAP)
    for place, (index, tile) in enumerate(zip(chosen, tiles, strict=True)):
        x, y = _GAP + place % columns * width, _GAP + place // columns * height
        image.paste(tile, (x, y))
        pen.text((x, y + tile.height + 3), _fitted(f"{index / clip.fps:.2f} s", tile.width), _SOFT, _font())
    return image


def overview(clips: Sequence[Clip | None], captions: Sequence[str]) -> Any:
    """A Pillow image with a row for each clip: its caption over ten evenly spaced frames, the first and the last among
    them; None is a clip that failed."""
    rows = [[] if clip is None else [_tile(clip.frames[i]) for i in _evenly(len(clip), _EACH)] for clip in clips]
    heights = [_LINE + max((tile.height for tile in row), default=0) + _GAP for row in rows]
    width = max([_TILE[1], *(sum(tile.width + _GAP for tile in row) for row in rows)]) + _GAP
    image, pen = _canvas(width, sum(heights) + _GAP)
    y = _GAP
    for clip, row, height, caption in zip(clips, rows, heights, captions, strict=True):
        pen.text((_GAP, y), _fitted(caption, width - 2 * _GAP), _SOFT if clip is None else _TEXT, _font())
        x = _GAP
        for tile in row:
            image.paste(tile, (x, y + _LINE))
            x += tile.width + _GAP
        y += height
    return image


def _evenly(count: int, most: int) -> list[int]:
    """Indices of at most so many out of ``count``, the first and the last among them."""
    return np.rint(np.linspace(0, count - 1, min(count, most))).astype(int).tolist()


def _tile(frame: np.ndarray) -> Any:
    """A frame that fits: a small one enlarged by a whole factor, so that its pixels stay sharp."""
    height, width = frame.shape[:2]
    share = min(_TILE[0] / height, _TILE[1] / width)
    image = picture(frame, max(1, int(share)))
    if share >= 1:
        return image
    size = max(1, round(width * share)), max(1, round(height * share))
    return image.resize(size, require("PIL.Image", "video").LANCZOS)


def _canvas(width: int, height: int) -> tuple[Any, Any]:
    image = require("PIL.Image", "video").new("RGB", (width, height), BACKGROUND)
    return image, require("PIL.ImageDraw", "video").Draw(image)


@cache
def _font() -> Any:
    return require("PIL.ImageFont", "video").load_default(_SIZE)


def _fitted(text: str, width: int) -> str:
    """The text, cut to a width in pixels."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..." if text else ""
