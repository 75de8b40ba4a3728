"""The modality-agnostic diffusion core."""

if __name__ != "noiseloom.core":
    raise ImportError("import noiseloom.core, not core")


def __getattr__(name: str) -> object:
    """``noiseloom.core.generate`` and its kin, imported on first use: torch takes seconds."""
    if name in ("generate", "sample", "trajectory"):
        from . import samplers

        return getattr(samplers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
