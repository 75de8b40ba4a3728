"""``noiseloom evaluate``: score any file of samples."""

from __future__ import annotations

from pathlib import Path

from noiseloom.modalities.modality import Modality

from .registries import modality
from .schema import EvaluateConfig


def run(config: EvaluateConfig) -> None:
    """Print the scores, and write them to ``<out>/metrics.json`` where a folder is given."""
    kind: type[Modality] = modality(config.modality)
    for path in (config.samples, config.reference):
        if path is not None and not Path(path).expanduser().exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
    artifacts = kind.load_artifacts(Path(config.samples).expanduser())
    reference = None if config.reference is None else Path(config.reference).expanduser()
    report = kind.evaluate(artifacts, reference, config.options)
    print(report)
    if config.out:
        folder = Path(config.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(report.to_json(), encoding="utf-8")
        print(f"\nwritten to {folder / 'metrics.json'}")
