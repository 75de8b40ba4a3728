"""What the command line says of itself: help pages and tab completion. No torch here, so that both are quick."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable

from .catalogue import KINDS, checkpoints, recipes
from .commands import COMMANDS, schema
from .schema import Option, options

SUMMARY = {
    "demo": "sample everything that is bundled, with a page to look at",
    "train": "train a recipe; the same command again goes on where it was stopped",
    "sample": "make samples with a checkpoint, as files a person can open",
    "evaluate": "score any file of samples, ours or another's",
    "likelihood": "how likely a checkpoint finds data, in bits per dimension",
    "ema": "weights averaged over another part of a run, after it",
    "list": "what there is: recipes, checkpoints, samplers, networks, ...",
}

EXAMPLES = {
    "demo": ["noiseloom demo", "noiseloom demo out=elsewhere seed=7"],
    "train": [
        "noiseloom train recipe=molecules/qm9-tiny",
        "noiseloom train recipe=molecules/qm9 trainer.steps=200000 trainer.batch_size=128",
        "noiseloom train recipe=molecules/qm9 data.source=mine.sdf run=mine",
        "noiseloom train recipe=molecules/qm9-tiny trainer.lr=1e-3,3e-4 --multirun",
        "noiseloom train recipe=audio/folder data.source=my_sounds run=mine",
        "noiseloom train recipe=video/folder data.source=my_videos run=mine",
    ],
    "sample": [
        "noiseloom sample checkpoint=molecules-qm9 count=64 out=candidates",
        "noiseloom sample checkpoint=molecules-qm9 formula=C7H10O2 sampler=ddim sampler.eta=1 steps=100",
        "noiseloom sample checkpoint=molecules-qm9 alpha=75 guidance=2 scaffold=ring.sdf",
        "noiseloom sample checkpoint=audio-digits label=7 count=8 duration=0.5",
        "noiseloom sample checkpoint=audio-digits input=clip.wav 'inpaint=[0.1-0.2]'",
        "noiseloom sample checkpoint=video-digits label=3,8 count=4",
        "noiseloom sample checkpoint=video-digits task=predict input=clip.mp4 frames=32",
    ],
    "evaluate": [
        "noiseloom evaluate modality=molecules samples=candidates/samples.sdf",
        "noiseloom evaluate modality=molecules samples=anyone.sdf reference=train.sdf out=scores",
        "noiseloom evaluate modality=audio samples=clips reference=real_clips options.embedder=digits-judge",
        "noiseloom evaluate modality=video samples=clips reference=real_clips options.judge=video-digits-judge",
    ],
    "likelihood": [
        "noiseloom likelihood checkpoint=audio-digits data.source=fsdd count=32",
        "noiseloom likelihood checkpoint=video-digits data.source=moving-digits bound=true",
    ],
    "ema": ["noiseloom ema run=runs/mine std=0.05"],
    "list": ["noiseloom list", "noiseloom list samplers schedules"],
}

FLAGS = [
    ("--cfg job", "print the composed configuration and stop"),
    ("--multirun, -m", "run every combination of key=a,b; each writes to a folder of its own below out"),
    ("--hydra-help", "hydra's other flags; launchers are hydra/launcher=joblib and the like"),
]

EPILOGUE = [
    ("noiseloom COMMAND --help", "a command's options"),
    ('eval "$(noiseloom -sc install=bash)"', "tab completion; also install=zsh, install=fish"),
    ("NOISELOOM_TRACEBACK=1", "in the environment: errors with their tracebacks"),
]


def columns(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns, the second wrapped to the width of the terminal; a newline in it starts a new line."""
    rows = list(rows)
    margin = min(max((len(name) for name, _ in rows), default=0), 38) + 2
    width = max(min(shutil.get_terminal_size((120, 24)).columns, 120) - margin - 2, 30)
    lines = []
    for name, text in rows:
        wrapped = [line for part in text.split("\n") for line in textwrap.wrap(part, width)] or [""]
        if len(name) > margin - 2:
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {'' if i else name:<{margin}}{line}".rstrip() for i, line in enumerate(wrapped)]
    return "\n".join(lines)


def _shown(entry: Option) -> tuple[str, str]:
    default = entry.default
    if entry.registry and entry.free:
        text = f"{entry.help}; {entry.key}.OPTION=... of noiseloom list {entry.registry}"
        return f"{entry.key}={default.get('name', 'NAME')}", text
    if entry.free:
        return f"{entry.key}.KEY=VALUE", entry.help
    if default == "???":
        return f"{entry.key}=...", f"{entry.help}; required"
    shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
    return f"{entry.key}={shown}", entry.help


def main_help() -> str:
    """``noiseloom --help``."""
    head = "noiseloom: sound, video and 3D molecules by diffusion\n\nnoiseloom COMMAND [key=value ...]"
    return f"{head}\n\n{columns(SUMMARY.items())}\n\n{columns(EPILOGUE)}"


def command_help(command: str) -> str:
    """``noiseloom COMMAND --help``."""
    examples = "\n".join(f"  {line}" for line in EXAMPLES[command])
    if command == "list":
        return f"noiseloom list [KIND ...]: {SUMMARY[command]}\n\n{examples}\n\nkinds: {', '.join(KINDS)}"
    parts = [f"noiseloom {command} [key=value ...]: {SUMMARY[command]}", examples]
    if command == "train":
        parts.append(f"recipes\n{columns(recipes().items())}")
    if command == "sample":
        parts.append(f"bundled checkpoints: {', '.join(checkpoints()) or 'none'}")
    parts.append(f"options and their defaults\n{columns(map(_shown, options(schema(command))))}")
    parts.append(f"flags\n{columns(FLAGS)}")
    return "\n\n".join(parts)


def complete(line: str) -> list[str] | str:
    """What may follow on a command line (``COMP_LINE``): words, or the line as hydra must see it to answer itself."""
    words = line.split()
    word = "" if line.endswith(" ") else words.pop()
    if len(words) <= 1:
        return [name for name in SUMMARY if name.startswith(word)]
    program, command, *given = words
    key, equals, value = word.partition("=")
    if command == "list":
        choices = list(KINDS)
    elif equals and key == "recipe":
        choices = [f"recipe={name}" for name in recipes()]
    elif equals and key == "checkpoint" and "/" not in value:
        choices = [f"checkpoint={name}" for name in checkpoints()]
    elif command == "train" and not any(each.startswith("recipe=") for each in given):
        choices = ["recipe="]  # the other options depend on it
    elif command in COMMANDS:
        return " ".join([program, *given, word])
    else:
        choices = []
    return [choice for choice in choices if choice.startswith(word)]
