"""Complete runs: train, sample, evaluate and the demo, from a configuration of plain values."""

if __name__ != "noiseloom.recipes":
    raise ImportError("import noiseloom.recipes, not recipes")
