"""``noiseloom demo``: sample every bundled checkpoint and make a page of it."""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path

import noiseloom
from noiseloom.modalities.extras import MissingExtra

from .catalogue import checkpoints, components
from .schema import DemoConfig

COUNT = 48

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>noiseloom demo</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
section {{ border: 1px solid #8884; border-radius: .75rem; padding: 1rem 1.25rem; margin: 1rem 0 }}
img {{ max-width: 100%; border-radius: .5rem; background: #fff }} h2 {{ margin: 0 0 .25rem }} a {{ color: #2a7 }}
</style></head><body><h1>noiseloom demo</h1>
<p>Samples of the bundled checkpoints, made on this machine just now.</p>
{sections}
</body></html>
"""
_SECTION = """<section><h2><a href="{page}">{name}</a></h2>
<p>{count} samples in {seconds:.0f} s, {steps} steps of {sampler}.
<a href="{page}">Look at them</a>: viewers, scores, files.</p>
<a href="{page}">{picture}</a></section>"""


def run(config: DemoConfig) -> None:
    """Each checkpoint into a folder of its own under ``out``, and ``out/index.html`` over them all."""
    out = Path(config.out)
    sections, missing = [], []
    for name in (name for name in checkpoints() if name not in components()):
        try:
            pipeline = noiseloom.load(name)
        except MissingExtra as error:
            missing.append(f"{name}: {error}")
            continue
        samples = pipeline.sample(COUNT, seed=config.seed)
        written = samples.save(out / name)
        print(samples.report, end="\n\n")
        pictures = [path for path in written if path.suffix == ".png"]
        picture = f'<img src="{name}/{pictures[0].name}" alt="{html.escape(name)}">' if pictures else ""
        sampler = samples.settings["sampler"]
        sections.append(
            _SECTION.format(
                name=html.escape(name),
                page=f"{name}/{written[-1].name}",
                count=len(samples),
                seconds=samples.seconds,
                steps=samples.settings["steps"],
                sampler=html.escape(sampler if isinstance(sampler, str) else json.dumps(sampler)),
                picture=picture,
            )
        )
    for line in missing:
        print(f"left out {line}", file=sys.stderr)
    if not sections:
        raise RuntimeError("no bundled checkpoint could be sampled")
    page = out / "index.html"
    page.write_text(_PAGE.format(sections="\n".join(sections)), encoding="utf-8")
    print(f"Open {page}")
