"""What sampling gives: artifacts a person can use, in order, with the failed ones counted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any


class Samples(Sequence[Any]):
    """Artifacts, one for each sample asked for; None where a sample failed.

    Attributes:
        artifacts: what the modality made of the samples.
        seeds: the seed of each: ``pipe.sample(seed=[samples.seeds[3]], ...)`` makes the fourth again.
        settings: how they were made: sampler, steps, guidance, request, ...
        seconds: how long it took.
    """

    def __init__(
        self, artifacts: Sequence[Any], seeds: Sequence[int], modality: Any, settings: dict[str, Any], seconds: float
    ) -> None:
        self.artifacts, self.seeds, self.settings, self.seconds = list(artifacts), list(seeds), settings, seconds
        self._modality = modality

    def __len__(self) -> int:
        return len(self.artifacts)

    def __getitem__(self, index: Any) -> Any:
        return self.artifacts[index]

    @property
    def failed(self) -> int:
        """How many samples became no artifact."""
        return sum(artifact is None for artifact in self.artifacts)

    @cached_property
    def report(self) -> Any:
        """The modality's scores, computed on first use."""
        return self._modality.report(self.artifacts)

    def save(self, directory: str | Path, **options: Any) -> list[Path]:
        """Write files a person can open; returns their paths, the page to open last. Of several processes the first
        one writes.

        Args:
            directory: made if needed.
            options: the modality's own, such as ``format="flac"``.

        Raises:
            ValueError: an option that the modality does not have.
        """
        if int(os.environ.get("RANK", "0")) > 0:
            return []
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            return self._modality.save(self.artifacts, directory, seeds=self.seeds, report=self.report, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error) or not options:
                raise
            raise ValueError(f"no such option of saving: {str(error).rpartition(' ')[2]}") from None

    def __repr__(self) -> str:
        return f"Samples({len(self)} in {self.seconds:.1f} s, {self.failed} failed)"
