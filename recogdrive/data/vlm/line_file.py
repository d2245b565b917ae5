"""A text file's lines by number, none of them kept in memory."""

import hashlib
from pathlib import Path

import numpy as np

_CHUNK = 1 << 24
_NEWLINE = ord("\n")


class LineFile:
    """Random access to the lines of a file, by where each begins.

    The file is opened for every line, so it is safe to read from threads and to hand to worker processes.

    Args:
      path: The file; it is read through once.

    Attributes:
      path: The file.
      fingerprint: SHA-256 of its content.

    Raises:
      ValueError: It cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        digest = hashlib.sha256()
        ends, position, last = [], 0, _NEWLINE
        try:
            with self.path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == _NEWLINE) + (position + 1))
                    position += len(chunk)
                    last = chunk[-1]
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}.") from error
        ends += [] if last == _NEWLINE else [np.array([position])]
        self._offsets = np.concatenate([np.zeros(1, np.int64), *ends]).astype(np.int64)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        """Line `number`, from 0, without what ends it.

        Raises:
          IndexError: There is no such line.
          ValueError: The file is shorter than it was, or cannot be read.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"line {number} of {self.path}, which has {len(self)}")
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                line = file.read(end - start)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}.") from error
        if len(line) < end - start:
            raise ValueError(f"{self.path} has become shorter since it was opened; leave it as it is during a run.")
        return line.rstrip(b"\r\n")
