"""Moving digits as a data set: MP4 files with their metadata, made on first use from MNIST's digits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from ..atomic import making_folder, write
from ..extras import cache_folder, data_folder
from ..threads import parallel
from .clip import Clip
from .moving_digits import moving_digits
from .writing import write_mp4

DIGITS_TINY = Path(__file__).parent / "assets" / "digits-tiny.npz"

_FORMAT = 1  # of the files made: others have another folder


@dataclass(frozen=True)
class DigitSet:
    """A data set of moving digits, in files.

    Attributes:
        name: its folder.
        digits: a file like mnist.npz, by default the one of ``data_folder()``; clips to train on show digits of its
            training half, those to test on show digits of its test half.
        train: clips to train on.
        test: clips to test on.
        counts: of digits; the clips take turns.
        frames: of a clip.
        size: height and width.
        fps: frames a second.
        speed: see :func:`.moving_digits.moving_digits`.
        quality: see :func:`.writing.write_mp4`.
        seed: of all that is drawn.
    """

    name: str
    digits: Path | None = None
    train: int = 12_000
    test: int = 1_000
    counts: tuple[int, ...] = (1, 2)
    frames: int = 20
    size: int = 64
    fps: float = 10.0
    speed: tuple[float, float] = (0.05, 0.12)
    quality: int = 12
    seed: int = 0


DIGITS = DigitSet("moving-digits")
# Made as Srivastava et al. made theirs, and stored without loss.
BENCHMARK = DigitSet("moving-digits-benchmark", train=0, counts=(2,), speed=(0.1, 0.1), quality=0)
TINY = DigitSet("moving-digits-tiny", DIGITS_TINY, train=160, test=40)


def made(wanted: DigitSet) -> Path:
    """The folder of MP4 files with its ``metadata.jsonl``: from the cache, else made now.

    Raises:
        FileNotFoundError: there is no mnist.npz.
        ValueError: it is not what it should be.
        CannotWrite: a full disk, no permission.
    """
    told = json.dumps({**asdict(wanted), "digits": None, "format": _FORMAT}, sort_keys=True)
    folder = cache_folder() / "made" / f"{wanted.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        halves = _digits(wanted.digits or data_folder() / "mnist.npz")
        with making_folder(folder) as partial:
            rows = [row for split, half in halves.items() for row in _write(partial, wanted, split, *half)]
            write(partial / "metadata.jsonl", (json.dumps(row) + "\n" for row in rows))
    return folder


def _write(folder: Path, wanted: DigitSet, split: str, images: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Write the clips of a split; returns their metadata. Each clip has a generator of its own."""
    clips = wanted.train if split == "train" else wanted.test

    def one(index: int) -> dict[str, Any]:
        random = np.random.default_rng((wanted.seed, split == "test", index))
        count = wanted.counts[index % len(wanted.counts)]
        scene = moving_digits(images, labels, random, count, wanted.frames, wanted.size, wanted.speed)
        name = f"{split}/{index // 1000:02}/{index:05}.mp4"
        write_mp4(folder / name, Clip(scene.frames[..., None], wanted.fps), quality=wanted.quality)
        return {"file": name, "label": ",".join(map(str, scene.digits)), "count": count, "split": split}

    for start in range(0, clips, 1000):
        (folder / split / f"{start // 1000:02}").mkdir(parents=True)
    return list(tqdm(parallel(one, range(clips)), f"making {wanted.name}, {split}", clips, unit="clip", leave=False))


def _digits(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels by split."""
    if not path.is_file():
        raise FileNotFoundError(
            f"moving-digits is made from {path.name}, which was not found: put it into {path.parent}; "
            "NOISELOOM_DATA=FOLDER names another place, and moving-digits-tiny needs none"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            halves = {split: (file[f"x_{split}"], file[f"y_{split}"]) for split in ("train", "test")}
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} holds no x_train, y_train, x_test and y_test ({error})") from error
    for images, labels in halves.values():
        if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1] or not len(images):
            raise ValueError(f"{path}: images are (n, height, width) of uint8, with a label each; these are not")
    return halves
