"""A distilled checkpoint in 1, 2 and 4 calls beside its teacher in 50, by the teacher's own metrics.

    python benchmarks/few_steps.py TEACHER STUDENT [--count 300] [--calls 1 2 4] [--out FILE]

Both make the same requests from the same seeds: digits in turn (audio), one and two digits in turn (video), nothing
asked (molecules). The teacher samples as its checkpoint says, but for the number of steps; the first row has its own.
A call is one of the network: a guided step of the teacher has two, a step of a student has one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _tables import plain_rows, table, write_figures

import noiseloom
from noiseloom.modalities.report import number

METRICS = {
    "audio": ["label_accuracy", "voice_accuracy", "frechet_distance"],
    "video": ["label_accuracy", "identity_stability", "natural_motion"],
    "molecules": ["molecules_stable_by_bonds", "valid_and_connected", "unique", "molecules_stable_by_lookup"],
}


def request(modality: str, count: int) -> dict[str, Any]:
    """What is asked of each sample."""
    if modality == "audio":
        return {"label": [str(i % 10) for i in range(count)]}
    if modality == "video":
        from video_digits import balanced  # which needs the extra "video"

        return {"label": balanced(count)}
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a name or a folder")
    parser.add_argument("student", help="a name or a folder")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--also", type=int, nargs="*", default=[4], help="other numbers of steps of the teacher")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    teacher, student = (noiseloom.load(name) for name in (arguments.teacher, arguments.student))
    kind = teacher.config["modality"]["name"]
    guided = (teacher.config.get("sampling") or {}).get("guidance") not in (None, 1, {})
    asked = request(kind, arguments.count)
    runs = [("teacher", teacher, steps) for steps in (50 // (1 + guided), *arguments.also)]
    runs += [("student", student, calls) for calls in arguments.calls]
    rows, figures, shown = [], [], None
    for who, pipeline, steps in runs:
        samples = pipeline.sample(arguments.count, seed=0, steps=steps, **asked)
        report = teacher.modality.report(list(samples))
        shown = shown or [name for name in METRICS[kind] if name in report.values()]
        calls = steps * (1 + guided if who == "teacher" else 1)
        cells = [number(report[name].value, report[name].unit, report[name].error) for name in shown]
        rows.append([who, str(steps), str(calls), *cells, f"{arguments.count / samples.seconds:.1f}"])
        figures.append({"who": who, "steps": steps, "calls": calls, "rows": plain_rows(report.rows)})
        print(f"{who}, {steps} steps: {', '.join(cells)}", flush=True)
    head = ["", "steps", "calls", *(name.replace("_", " ") for name in shown or []), "a second"]
    print(f"\n{arguments.count} samples of seed 0\n\n{table(head, rows)}")
    write_figures(arguments.out, {"count": arguments.count, "runs": figures})


if __name__ == "__main__":
    main()
