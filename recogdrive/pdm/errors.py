"""What goes wrong with scenes."""


class SceneError(ValueError):
    """A scene that cannot be scored; the message says which, why and what to do."""
