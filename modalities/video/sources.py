"""Where clips come from: the named data sets of video, and what counts as a video file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .. import listing
from ..listing import Listing, Named, Sought, stem
from .digit_set import BENCHMARK, DIGITS, TINY, made
from .reading import IMAGES, SUFFIXES

_WEST = -117.0  # degrees: the tiles west of it overlap none of the others


def find_clips(
    source: str | os.PathLike[str], columns: Mapping[str, str] | None = None, kinds: Sequence[str] | None = None
) -> Listing:
    """The videos and images of a named source or a path, as in :func:`noiseloom.modalities.listing.find_clips`.

    A picture beside a video of the same name (a preview, a contact sheet) is no clip of its own.

    Args:
        source: "moving-digits", "moving-digits-benchmark", "moving-digits-tiny", "emoji", "radar", "faces", a path or a
            pattern.
    """
    found = listing.find_clips(source, CLIPS, columns, kinds)
    videos = {stem(clip.name) for clip in found.clips if not clip.name.lower().endswith(IMAGES)}
    beside = [c for c in found.clips if c.name.lower().endswith(IMAGES) and stem(c.name) in videos]
    if beside:
        found.dropped += [("a picture beside a video of its name", clip.name) for clip in beside]
        names = {clip.name for clip in beside}
        found.clips = [clip for clip in found.clips if clip.name not in names]
    return found


def _emoji(row: dict[str, Any]) -> dict[str, Any]:
    """The group is the label; the skin tones of one emoji stay in one split."""
    return {**row, "label": row["group"], "group": row["name"]}


def _radar(row: dict[str, Any]) -> dict[str, Any]:
    """The test tiles lie east of 84 W; held out for validation are those west of 117 W."""
    return {**row, "split": "valid" if row["split"] == "train" and row["lon"] < _WEST else row["split"]}


NAMED = {
    "moving-digits": Named(
        "13,000 clips of one or two moving MNIST digits (CC BY-SA 3.0), made on first use from mnist.npz",
        {"label": "label", "count": "count"},
        archive=lambda: made(DIGITS),
    ),
    "moving-digits-benchmark": Named(
        "1,000 clips to test on, of two digits at the benchmark's speed, made on first use from mnist.npz",
        {"label": "label", "count": "count"},
        archive=lambda: made(BENCHMARK),
    ),
    "moving-digits-tiny": Named(
        "200 clips of moving digits, made on first use from 360 bundled ones",
        {"label": "label", "count": "count"},
        valid_fraction=0.1,
        archive=lambda: made(TINY),
    ),
    "emoji": Named(
        "1,551 captioned animations of github.com/microsoft/fluentui-emoji-animated (MIT)",
        {"label": "label", "text": "text"},
        amend=_emoji,
        stem="fluent_emoji_anim",
    ),
    "radar": Named(
        "176 loops of NOAA's weather radar, MRMS precipitation rate (US government, public domain)",
        {"label": "label", "text": "text", "coverage": "coverage"},
        amend=_radar,
        stem="mrms_radar",
    ),
    "faces": Named(
        "1,000 sentences spoken by talker 1 of the GRID corpus, zenodo.org/records/3625687 (CC BY 4.0)",
        {"text": "text"} | {word: word for word in ("command", "color", "preposition", "letter", "digit", "adverb")},
        stem="grid_s1_av",
    ),
}
CLIPS = Sought("videos or images", SUFFIXES, NAMED)
