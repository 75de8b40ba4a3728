"""What each kind of data is, where it lives mathematically, and how it becomes a file."""

if __name__ != "noiseloom.modalities":
    raise ImportError("import noiseloom.modalities, not modalities")
