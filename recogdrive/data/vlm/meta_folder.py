"""Conversations of any source as the files that InternVL's own training reads."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from recogdrive.data.vlm.conversations import Conversation, ConversationSource
from recogdrive.data.vlm.pictures import Picture

META, IMAGES = "meta.json", "images"
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png"}


def write_meta(
    folder: str | Path, sources: Mapping[str, ConversationSource], *, image_format: str = "JPEG", quality: int = 95
) -> Path:
    """Writes conversations as a meta file, one JSONL file a data set and one image file a picture.

    Paths in the files are relative to `folder`: read them with `ConversationMixture(path, base_folder=folder)`, and
    start the original code there. The meta file is written last, so it is there only if everything is.

    Args:
      folder: Made if needed; must not hold a meta file.
      sources: Conversations by the data sets' names.
      image_format: `JPEG`, or `PNG` to keep every pixel.
      quality: Of JPEG.

    Returns:
      The meta file.

    Raises:
      ValueError: No sources, a name that is no file name, an unknown format, or `folder` holds a meta file.
      ConversationError: A conversation cannot be made; names it.
      PictureError: A picture cannot be had; names it.
    """
    folder = Path(folder)
    if image_format not in _SUFFIX:
        raise ValueError(f"image_format={image_format!r} must be one of {', '.join(_SUFFIX)}.")
    if not sources:
        raise ValueError("write_meta has no sources to write; give at least one.")
    for name in sources:
        if not name or name != Path(name).name:
            raise ValueError(f"The data set {name!r} cannot name a file; use letters, digits and underscores.")
    path = folder / META
    if path.exists():
        raise ValueError(f"{path} exists; write to a new folder.")
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    meta = {}
    written: dict[str, str] = {}
    for name, source in sources.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            for index in range(len(source)):
                conversation = source[index]
                files = [_image(folder, picture, written, image_format, quality) for picture in conversation.pictures]
                lines.write(json.dumps(_record(conversation, files), ensure_ascii=False) + "\n")
        meta[name] = {
            "root": IMAGES,
            "annotation": f"{name}.jsonl",
            "data_augment": False,
            "repeat_time": 1,
            "length": len(source),
        }
    path.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _record(conversation: Conversation, files: list[str]) -> dict[str, object]:
    """One line of a JSONL file; text alone has no image."""
    turns = [{"from": turn.role, "value": turn.text} for turn in conversation.turns]
    images: dict[str, object] = {"image": files} if files else {}
    return {"id": conversation.id, **images, "conversations": turns}


def _image(folder: Path, picture: Picture, written: dict[str, str], image_format: str, quality: int) -> str:
    """File name of a picture, written the first time it is met."""
    if picture.name not in written:
        file = hashlib.sha256(picture.name.encode()).hexdigest()[:16] + _SUFFIX[image_format]
        options = {"quality": quality} if image_format == "JPEG" else {}
        picture.open().save(folder / IMAGES / file, format=image_format, **options)
        written[picture.name] = file
    return written[picture.name]
