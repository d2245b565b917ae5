"""Tables of a GeoPackage: SQLite with geometries as well-known binary behind a short header."""

import math
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely

_HEADER_BYTES = 8
# Size of the bounding box after the header, by the three bits of the flags that describe it.
_ENVELOPE_BYTES = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}


@dataclass(frozen=True)
class Table:
    """Rows of one layer in the order of their ids.

    Attributes:
      ids: Primary keys as decimal strings.
      geometry: Object array of shapely geometries, projected, as long as `ids`.
      columns: Values of the columns asked for, each as long as `ids`; NULL is None.
    """

    ids: tuple[str, ...]
    geometry: np.ndarray
    columns: dict[str, tuple[Any, ...]]

    def identifiers(self, column: str) -> tuple[str | None, ...]:
        """A column of references as decimal strings, None for NULL; see `decimal_id`."""
        return tuple(decimal_id(value) for value in self.columns[column])


def decimal_id(value: Any) -> str | None:
    """An id as a decimal string, however its column is typed; None for NULL, NaN and the empty string.

    Raises:
      ValueError: The value is no whole number.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    number = int(value)
    if number != float(value):
        raise ValueError(f"{value!r} is no id: ids are whole numbers.")
    return str(number)


class GeoPackage:
    """Reads layers of one file, projected to the plane that its `meta` layer names.

    Args:
      path: The file; opened read-only, and closed again by `with`.

    Raises:
      ValueError: The file is no GeoPackage, or its `meta` layer names no projection.
    """

    def __init__(self, path: Path):
        self.path = path
        # immutable: no lock or journal files, so that maps on read-only and network disks open.
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            self._geometry_columns = {
                table: (column, srs)
                for table, column, srs in self._connection.execute(
                    "SELECT table_name, column_name, srs_id FROM gpkg_geometry_columns"
                )
            }
            meta = dict(self._connection.execute('SELECT "key", "value" FROM "meta"'))
            self.crs = pyproj.CRS.from_user_input(meta["projectedCoordSystem"])
        except (sqlite3.Error, KeyError, pyproj.exceptions.CRSError) as error:
            self._connection.close()
            raise ValueError(
                f"{path} is no nuPlan map: its `meta` layer and row projectedCoordSystem could not be read "
                f"({type(error).__name__}: {error}). Download the map again."
            ) from error
        self._transformers: dict[int, pyproj.Transformer] = {}

    def __enter__(self) -> "GeoPackage":
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def table(self, layer: str, *columns: str) -> Table:
        """Reads a layer.

        Args:
          layer: Table name.
          *columns: Columns to read besides the id and the geometry.

        Raises:
          ValueError: The layer or a column does not exist, or a geometry is missing or does not parse.
        """
        if layer not in self._geometry_columns:
            raise ValueError(
                f"{self.path} has no layer {layer!r}; it has {sorted(self._geometry_columns)}. Download the map again."
            )
        geometry_column, srs = self._geometry_columns[layer]
        existing = [row[1] for row in self._connection.execute(f'PRAGMA table_info("{layer}")')]
        for column in (geometry_column, *columns):
            # SQLite takes an unknown quoted name for a string, so a missing column must be looked for.
            if column not in existing:
                raise ValueError(f"{self.path}: layer {layer!r} has no column {column!r}; it has {existing}.")
        chosen = ", ".join(f'"{column}"' for column in ("fid", geometry_column, *columns))
        try:
            rows = self._connection.execute(f'SELECT {chosen} FROM "{layer}" ORDER BY "fid"').fetchall()
        except sqlite3.Error as error:
            raise ValueError(f"{self.path}: layer {layer!r} could not be read: {error}.") from error
        ids, blobs, *values = zip(*rows, strict=True) if rows else ((), (), *([()] * len(columns)))
        geometry = self._project(self._parse(layer, ids, blobs), srs)
        return Table(tuple(map(str, ids)), geometry, dict(zip(columns, values, strict=True)))

    def _parse(self, layer: str, ids: tuple[int, ...], blobs: tuple[bytes | None, ...]) -> np.ndarray:
        bodies = []
        for fid, blob in zip(ids, blobs, strict=True):
            envelope = _ENVELOPE_BYTES.get((blob[3] >> 1) & 7) if blob and len(blob) > _HEADER_BYTES else None
            if envelope is None or blob[:2] != b"GP":
                raise ValueError(
                    f"{self.path}: {layer} {fid} has no geometry in GeoPackage form. Download the map again."
                )
            bodies.append(blob[_HEADER_BYTES + envelope :])
        try:
            return np.asarray(shapely.force_2d(shapely.from_wkb(np.array(bodies, dtype=object))), dtype=object)
        except shapely.errors.ShapelyError as error:
            raise ValueError(f"{self.path}: layer {layer} holds a damaged geometry: {error}.") from error

    def _project(self, geometry: np.ndarray, srs: int) -> np.ndarray:
        if srs not in self._transformers:
            self._transformers[srs] = pyproj.Transformer.from_crs(srs, self.crs, always_xy=True)
        transformer = self._transformers[srs]
        return shapely.transform(geometry, lambda xy: np.stack(transformer.transform(xy[:, 0], xy[:, 1]), axis=-1))
