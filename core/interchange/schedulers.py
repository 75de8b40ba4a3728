"""Scheduler configurations of diffusers from and to (schedule, prediction, grid, sampler)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..grids import GRIDS
from ..predictions import PREDICTIONS
from ..registry import Registry, unknown
from ..samplers import SAMPLERS
from ..schedules import SCHEDULES, Table
from .tables import INERT, REFUSED, SCHEDULERS, Row, Scheduler

MEANINGS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}
NAMED_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
SPREADS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}

Spec = Mapping[str, Any]


class Scheduling(NamedTuple):
    """What a scheduler says, as specifications: ``generate(..., **scheduling._asdict())`` but for the prediction, which
    is the network's."""

    schedule: dict[str, Any]
    prediction: Any
    grid: dict[str, Any]
    sampler: dict[str, Any]


def from_diffusers(config: Mapping[str, Any], mu: float | None = None) -> Scheduling:
    """What a scheduler configuration says (``scheduler_config.json``, or ``dict(scheduler.config)``).

    A start at time t is ``sigma(t)`` times normal noise here; the schedulers that keep x / alpha, such as Euler's, end
    at the same sample. Where theirs is the same method in another form, a warning says what differs.

    Args:
        config: the configuration; options that it leaves out are those of diffusers.
        mu: the logarithm of the shift, where that depends on the size of a sample (``use_dynamic_shifting``).

    Raises:
        ValueError: a scheduler, an option or a value that has no equal here.
    """
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        raise ValueError(f"{name}: {REFUSED[name]}" if name in REFUSED else unknown("scheduler", name, SCHEDULERS))
    entry = SCHEDULERS[name]
    for key in config:
        if key not in entry.options and key not in INERT:
            raise ValueError(f"{name} has no option known here that is called {key!r}")
    left = dict(entry.options) | dict(config)
    prediction: Any
    row = _row(name, entry, left)
    if left.pop("use_flow_sigmas", False) or entry.kind == "flow":
        schedule, prediction, grid = _flow(entry, left, mu)
    elif entry.kind == "edm":
        schedule, prediction, grid = _edm(left)
    else:
        schedule, prediction, grid = _table(left), _prediction(left, "noise", "x0", "v"), _spacing(entry, left)
    if row.options.get("variance_type") == "learned_range":
        prediction = {"name": "learned_range", "of": prediction}
    _report(name, row, grid, left)
    for key, value in left.items():
        if key not in INERT and value != entry.options[key]:
            raise ValueError(f"{name}: {key}={value!r} has no equal here")
    return Scheduling(schedule, prediction, grid, dict(row.sampler))


def _take(config: dict[str, Any], *keys: str) -> list[Any]:
    return [config.pop(key, None) for key in keys]


def _table(config: dict[str, Any]) -> dict[str, Any]:
    levels, start, end, name, betas, zero = _take(
        config,
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
    )
    if betas is not None:
        schedule: dict[str, Any] = {"name": "table", "betas": [float(beta) for beta in betas]}
    elif name == "sigmoid":
        rise = torch.sigmoid(torch.linspace(-6, 6, levels, dtype=torch.float64))
        schedule = {"name": "table", "betas": (start + (end - start) * rise).tolist()}
    elif name not in NAMED_BETAS:
        raise ValueError(f"beta_schedule {name!r} has no equal here. Choices: {', '.join((*NAMED_BETAS, 'sigmoid'))}")
    else:
        schedule = {"name": NAMED_BETAS[name], "levels": levels}
        if name != "squaredcos_cap_v2":
            schedule |= {"beta_start": start, "beta_end": end}
    return {"name": "zero_terminal_snr", "schedule": schedule} if zero else schedule


def _prediction(config: dict[str, Any], *choices: str) -> str:
    (name,) = _take(config, "prediction_type")
    if MEANINGS.get(name) not in choices:
        known = ", ".join(theirs for theirs, ours in MEANINGS.items() if ours in choices)
        raise ValueError(f"prediction_type {name!r} has no equal on this schedule. Choices: {known}")
    return MEANINGS[name]


def _spacing(entry: Scheduler, config: dict[str, Any]) -> dict[str, Any]:
    spacing, offset, original = _take(config, "timestep_spacing", "steps_offset", "original_inference_steps")
    to_one, final = _take(config, "set_alpha_to_one", "final_sigmas_type")
    grid: dict[str, Any] = {"name": "diffusers", "spacing": spacing or "linspace"}
    if original is not None:  # a few-step network
        return {"name": "diffusers", "spacing": "original", "original_steps": original}
    grid["counting"] = entry.kind
    if offset and spacing == "leading":
        grid["offset"] = offset
    spreads = [kind for key, kind in SPREADS.items() if config.pop(key, False)]
    if spreads:
        grid["sigmas"] = spreads[0]
    grid["final"] = final or {True: "zero", False: "sigma_min", None: entry.final}[to_one]
    return grid


def _flow(entry: Scheduler, config: dict[str, Any], mu: float | None) -> tuple[dict[str, Any], str, dict[str, Any]]:
    levels, shift, flow_shift, dynamic = _take(
        config, "num_train_timesteps", "shift", "flow_shift", "use_dynamic_shifting"
    )
    prediction = "velocity" if entry.kind == "flow" else _prediction(config, "noise", "x0", "velocity")
    if any(config.pop(key, False) for key in SPREADS):
        raise ValueError("sigmas of a flow that are spread anew have no equal here")
    for key in ("beta_start", "beta_end", "beta_schedule", "trained_betas", "timestep_spacing", "steps_offset"):
        config.pop(key, None)  # a flow's sigmas do not depend on them
    shift = shift if entry.kind == "flow" else flow_shift
    if dynamic:
        if mu is None:
            raise ValueError("use_dynamic_shifting: give mu, the logarithm of the shift for the size of a sample")
        shift = math.exp(mu) if config.get("time_shift_type") != "linear" else mu
    grid = {"name": "shifted", "shift": float(shift), **_flow_ends(entry, float(shift), levels)}
    return {"name": "flow"}, prediction, grid


def _flow_ends(entry: Scheduler, shift: float, levels: int = 1000) -> dict[str, float]:
    """Where the times of a flow start and end, before the shift."""
    if entry.kind == "flow":
        return {"first": 1.0, "last": 1 / levels}
    if entry.final == "sigma_min":
        raise ValueError("its sigmas of a flow end before 0")
    if "shift_terminal" not in entry.options:
        return {"first": 1 - 1 / levels}
    return {"first": (1 - 1e-6) / (1 + (shift - 1) * 1e-6), "end": 1 / levels}  # 1 - 1e-6, shifted


def _edm(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    low, high, sigma_data, spread, rho = _take(config, "sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho")
    if spread == "karras":
        grid = {"name": "karras", "sigma_min": low, "sigma_max": high, "rho": rho}
    elif spread == "exponential":
        grid = {"name": "exponential", "sigma_min": low, "sigma_max": high}
    else:
        raise ValueError(f"sigma_schedule {spread!r} has no equal here. Choices: karras, exponential")
    return {"name": "edm", "sigma_max": high, "rho": rho}, {"name": "edm", "sigma_data": sigma_data}, grid


def _row(name: str, entry: Scheduler, config: dict[str, Any]) -> Row:
    """The row that the configuration selects; its options are taken out, but for where it ends."""
    keys = {key for row in entry.samplers for key in row.options}
    chosen = {key: config[key] for key in sorted(keys)}
    for key in keys - {"final_sigmas_type"}:
        del config[key]
    for row in entry.samplers:
        if all(chosen[key] == value for key, value in row.options.items()):
            return row
    told = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
    raise ValueError(f"{name}: {told} has no equal here")


def _report(name: str, row: Row, grid: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Warn of what is not the same."""
    differences = [row.differs] if row.differs else []
    if any(_take(config, "clip_sample", "thresholding")):
        differences.append("it clips estimates of x0, which is a denoiser's business here")
    lower, euler = _take(config, "lower_order_final", "euler_at_final")
    if row.options.get("solver_order", 1) > 1 + (grid.get("final", "zero") == "zero") and (euler or lower):
        differences.append("its last steps may be of lower order: here only a step to t = 0 is")
    noisy = row.options.get("variance_type") in ("fixed_large", "learned_range")
    if noisy and (grid["spacing"] == "trailing" or "offset" in grid):
        differences.append("it adds noise in its last step too, to t = 0")
    if name == "DDIMScheduler" and grid["spacing"] != "leading":
        differences.append("where its levels are not T // steps apart it does not step to the next of them")
    if name.startswith("FlowMatch") and grid["shift"] != 1 and not config.get("use_dynamic_shifting"):
        differences.append("it shifts its smallest sigma twice")
    if differences:
        warnings.warn(f"{name} differs from sampler {row.sampler['name']!r}: {'; '.join(differences)}", stacklevel=3)


def to_diffusers(schedule: Any, prediction: Any = "noise", grid: Any = None, sampler: Any = "ddim") -> dict[str, Any]:
    """A scheduler configuration, ``_class_name`` included, of which ``from_diffusers`` makes these four again.

    Args:
        schedule: a name, a mapping with a name, or a ``Table``.
        prediction: a name or a mapping with a name.
        grid: likewise; by default that of the scheduler.
        sampler: likewise.

    Raises:
        ValueError: what no scheduler of diffusers does; the message says what was tried.
    """
    solver, tried = _full(SAMPLERS, sampler), []
    for name, entry in SCHEDULERS.items():
        for row in entry.samplers:
            if _full(SAMPLERS, row.sampler) != solver:
                continue
            try:
                told = _told(entry, schedule, _but_its_variance(row, prediction), grid)
                if any(told.get(key, value) != value for key, value in row.options.items()):
                    raise ValueError(f"this sampler of it needs {dict(row.options)}")
            except ValueError as error:
                tried.append(f"{name}: {error}")
            else:
                unclipped = {"clip_sample": False} if "clip_sample" in entry.options else {}
                return {"_class_name": name, **entry.options, **row.options, **unclipped, **told}
    raise ValueError(
        f"no scheduler of diffusers does what sampler {sampler!r} does{' here' if tried else ''}. {'; '.join(tried)}"
    )


def _full(registry: Registry[Any], spec: Any) -> dict[str, Any]:
    """A specification with all its options."""
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping):
        raise ValueError(f"a {registry.kind} is told by its name and options, not by an object: {spec!r}")
    return {**registry.options(spec["name"]), **spec}


def _but_its_variance(row: Row, prediction: Any) -> Any:
    """The prediction beside a learned variance, where the sampler uses one."""
    spec, learned = _full(PREDICTIONS, prediction), row.options.get("variance_type") == "learned_range"
    if learned != (spec["name"] == "learned_range"):
        raise ValueError("prediction 'learned_range' and sampler 'ddpm' with variance 'learned' go together")
    return spec["of"] if learned else prediction


def _told(entry: Scheduler, schedule: Any, prediction: Any, grid: Any) -> dict[str, Any]:
    """What the options of a scheduler are told of schedule, prediction and grid."""
    kind = "table" if isinstance(schedule, Table) else _full(SCHEDULES, schedule)["name"]
    means = _full(PREDICTIONS, prediction)
    if entry.kind == "edm" or kind == "edm":
        if not entry.kind == kind == means["name"]:
            raise ValueError("schedule and prediction 'edm' go together, with a scheduler of EDM")
        return {"sigma_data": means["sigma_data"], **_edm_grid(_full(SCHEDULES, schedule), grid)}
    if kind == "flow":
        return _flow_grid(entry, means["name"], grid)
    if entry.kind == "flow":
        raise ValueError(f"it is for schedule 'flow', not {kind!r}")
    betas = _betas(schedule)
    if betas.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in entry.options:
        raise ValueError("it has no schedule that ends without signal")
    return {**_meaning(means["name"], "noise", "x0", "v"), **betas, **_spacing_options(entry, grid)}


def _meaning(prediction: str, *choices: str) -> dict[str, Any]:
    if prediction not in choices:
        raise ValueError(f"no prediction_type on this schedule is {prediction!r}")
    return {"prediction_type": next(theirs for theirs, ours in MEANINGS.items() if ours == prediction)}


def _betas(schedule: Any) -> dict[str, Any]:
    if isinstance(schedule, Table):
        ratio = schedule.alphas[1:] / schedule.alphas[:-1]
        return {"trained_betas": (1 - ratio**2).tolist(), "num_train_timesteps": schedule.levels}
    spec = _full(SCHEDULES, schedule)
    name = spec["name"]
    if name == "zero_terminal_snr":
        return {**_betas(spec["schedule"]), "rescale_betas_zero_snr": True}
    if name == "table":
        return {"trained_betas": list(spec["betas"]), "num_train_timesteps": len(spec["betas"])}
    if name == "cosine" and spec == {**_full(SCHEDULES, "cosine"), "levels": spec["levels"]}:
        return {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": spec["levels"]}
    if name not in ("linear", "scaled_linear"):
        raise ValueError(f"no beta_schedule is {schedule!r}; a table of its betas is one")
    ends = {"beta_start": spec["beta_start"], "beta_end": spec["beta_end"]}
    return {"beta_schedule": name, "num_train_timesteps": spec["levels"], **ends}


def _spacing_options(entry: Scheduler, grid: Any) -> dict[str, Any]:
    if grid is None:
        return {}
    spec, known = _full(GRIDS, grid), entry.options
    if spec["name"] in ("trailing", "leading", "linspace") and spec["levels"] is None:
        counting = "points" if spec["name"] == "linspace" or entry.kind == "intervals" else entry.kind
        spec = _full(GRIDS, {"name": "diffusers", "spacing": spec["name"], "counting": counting})
    if spec["name"] != "diffusers":
        raise ValueError(f"no timestep_spacing is grid {grid!r}")
    spacing, spread = spec["spacing"], spec["sigmas"]
    if (spacing == "original") != ("original_inference_steps" in known):
        raise ValueError(f"its timesteps are not spaced as {spacing!r}")
    if spacing == "original":
        return {"original_inference_steps": spec["original_steps"]}
    if spec["counting"] != entry.kind and (spacing != "trailing" or spread):
        raise ValueError(f"it counts {entry.kind}, not {spec['counting']}")
    if spacing != known.get("timestep_spacing", "linspace") and "timestep_spacing" not in known:
        raise ValueError(f"it has no timestep_spacing {spacing!r}")
    options: dict[str, Any] = {"timestep_spacing": spacing, "steps_offset": spec["offset"]}
    options = {key: value for key, value in options.items() if key in known}
    flag = next((key for key, kind in SPREADS.items() if kind == spread), None)
    if flag is not None and flag not in known:
        raise ValueError(f"it has no {flag}")
    options |= {flag: True} if flag else {}
    if "final_sigmas_type" in known:
        options["final_sigmas_type"] = spec["final"]
    elif "set_alpha_to_one" in known:
        options["set_alpha_to_one"] = spec["final"] == "zero"
    elif spec["final"] != entry.final:
        raise ValueError(f"it cannot end at {spec['final']!r}")
    if spec["final"] == "sigma_min" and "lower_order_final" in known:
        options["lower_order_final"] = False  # only a step to t = 0 needs it
    return options


def _flow_grid(entry: Scheduler, prediction: str, grid: Any) -> dict[str, Any]:
    own = entry.kind == "flow"
    if not own and "use_flow_sigmas" not in entry.options:
        raise ValueError("it is not for schedule 'flow'")
    means = _meaning(prediction, "velocity", *(() if own else ("noise", "x0")))
    spec = _full(GRIDS, {"name": "shifted", "shift": 1.0} if grid is None else grid)
    its = {"name": "shifted", "shift": spec.get("shift"), **_flow_ends(entry, float(spec.get("shift", 1.0)))}
    if grid is not None and spec != _full(GRIDS, its):
        raise ValueError(f"its grid is {its}, not {grid!r}")
    if own:
        return {"shift": spec["shift"]}
    return {"use_flow_sigmas": True, "flow_shift": spec["shift"], **means}


def _edm_grid(schedule: Spec, grid: Any) -> dict[str, Any]:
    high, rho = schedule["sigma_max"], schedule["rho"]
    spec = _full(GRIDS, {"name": "karras", "rho": rho} if grid is None else grid)
    own_rho = {"karras": rho, "exponential": 1.0}.get(spec["name"])
    if own_rho is None or spec["rho"] != own_rho or spec["sigma_max"] not in (None, high):
        raise ValueError(f"its grids are 'karras' and 'exponential' of the schedule's own ends, not {grid!r}")
    return {"sigma_schedule": spec["name"], "sigma_min": spec["sigma_min"], "sigma_max": high, "rho": rho}
