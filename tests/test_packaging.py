"""What is installed: nothing missing, nothing too much, and quick to import."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from noiseloom import __version__

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "modalities", "recipes")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


def installed_files() -> set[str]:
    """Every file of the three folders under the name that the wheel must give it."""
    files = [
        p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    return {f"noiseloom/{p.relative_to(ROOT).as_posix()}" for p in files}


def test_every_package_is_listed() -> None:
    found = {"noiseloom"} | {
        str(Path(name).parent).replace("/", ".") for name in installed_files() if name.endswith("/__init__.py")
    }
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(found)


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {p.parent for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("noiseloom", *FOLDERS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = python(f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})", cwd=source)
    assert build.returncode == 0, build.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    assert wheel.name == f"noiseloom-{__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == installed_files() | {"noiseloom/__init__.py", "noiseloom/py.typed"}


def test_the_folders_cannot_be_imported_by_their_own_names() -> None:
    for folder in FOLDERS:
        result = python(f"import {folder}")
        assert result.returncode == 1
        assert f"import noiseloom.{folder}, not {folder}" in result.stderr


def test_the_core_is_quick_to_import_and_takes_nothing_heavy_along() -> None:
    result = python(
        "import time, torch, sys\n"
        "start = time.process_time()\n"
        "import noiseloom, noiseloom.core\n"
        "heavy = 'rdkit torchaudio e3nn hydra tensordict accelerate scipy'.split()\n"
        "print(time.process_time() - start, *(name for name in heavy if name in sys.modules))"
    )
    seconds, *heavy = result.stdout.split()
    assert heavy == []
    assert float(seconds) < 2  # processor seconds beyond torch


def test_readme_gives_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    for wanted in ("noiseloom demo", "pytest"):
        assert any(re.match(rf"pip install uv && uv run .*{wanted}|uv run {wanted}", line) for line in lines)
