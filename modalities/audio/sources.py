"""Where sounds come from: the named data sets of audio, and what counts as a sound."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .. import listing
from ..listing import Listing, Named, Sought, hashed
from .tiny import NOTES_TINY

_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
_UNDECODED = (".m4a", ".aac", ".wma", ".mp4", ".webm", ".amr")  # sounds that libsndfile cannot read


def find_clips(
    source: str | os.PathLike[str], columns: Mapping[str, str] | None = None, kinds: Sequence[str] | None = None
) -> Listing:
    """The sounds of a named source or a path, as in :func:`noiseloom.modalities.listing.find_clips`.

    Args:
        source: "fsdd", "esc10", "notes", "notes-tiny", a path or a pattern.
    """
    return listing.find_clips(source, SOUNDS, columns, kinds)


_CAPTIONS = {
    "chainsaw": ("a chainsaw", "a chainsaw cutting wood"),
    "clock_tick": ("a ticking clock", "the ticking of a clock"),
    "crackling_fire": ("a crackling fire", "wood burning in a fire"),
    "crying_baby": ("a crying baby", "a baby crying"),
    "dog": ("a barking dog", "a dog barks"),
    "helicopter": ("a helicopter", "a helicopter flying past"),
    "rain": ("falling rain", "the sound of rain"),
    "rooster": ("a crowing rooster", "a rooster crows"),
    "sea_waves": ("waves of the sea", "waves breaking on a beach"),
    "sneezing": ("a sneeze", "someone sneezing"),
}


def _esc10(row: dict[str, Any]) -> dict[str, Any]:
    """Fold 5 is the test set; clips cut from one recording are a group; a caption is chosen by the recording."""
    plain = row["label"].replace("_", " ")
    choices = (plain, *_CAPTIONS.get(row["label"], ()))
    recording = f"{row['fold']}-{row['freesound_url']}"
    text = choices[int(hashed(f"{recording} {row['licence']}") * len(choices))]
    return {**row, "text": text, "group": recording, "split": "test" if row["fold"] == "5" else "train"}


NAMED = {
    "fsdd": Named(
        "the Free Spoken Digit Dataset, github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0)",
        {"label": "digit", "voice": "speaker"},
        valid_fraction=0.04,
    ),
    "esc10": Named(
        "ESC-10, ten classes of github.com/karolpiczak/ESC-50 (CC BY)", {"label": "label", "text": "text"}, amend=_esc10
    ),
    "notes": Named(
        "592 notes of eight instruments rendered from the sound font FluidR3Mono (MIT)",
        {"label": "label", "pitch": "midi", "velocity": "velocity"},
        kinds=("note",),
    ),
    "notes-tiny": Named(
        "72 of the notes, bundled: four instruments, keys 55 to 72, one velocity",
        {"label": "label", "pitch": "midi"},
        valid_fraction=0.2,
        archive=lambda: NOTES_TINY,
    ),
}
SOUNDS = Sought("sounds", _SUFFIXES, NAMED, _UNDECODED, ".wav or .flac")
