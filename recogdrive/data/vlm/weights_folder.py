"""Where the weights and the tokenizer of a VLM lie: a checkpoint folder itself, or the run that exported one."""

from pathlib import Path

EXPORT_FOLDER = "export"
"""Within a run folder."""
ORIGINAL, TRANSFORMERS = "original", "transformers"
"""Layouts of a checkpoint, and names of their folders within `EXPORT_FOLDER`."""
_CONFIG = "config.json"


def find_weights_folder(path: str | Path) -> Path:
    """The checkpoint folder that `path` is, or that the run in `path` exported.

    Raises:
      ValueError: Neither is there; says what was looked for.
    """
    path = Path(path)
    places = [path, *(path / EXPORT_FOLDER / layout for layout in (ORIGINAL, TRANSFORMERS))]
    for place in places:
        if (place / _CONFIG).is_file():
            return place
    if not path.is_dir():
        raise ValueError(f"There is no folder {path}; name a folder of VLM weights, or of a run that exported some.")
    raise ValueError(
        f"{path} holds no VLM weights: none of {', '.join(str(place / _CONFIG) for place in places)} exists. A "
        "fine-tuning run exports its weights when it ends."
    )
