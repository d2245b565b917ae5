"""Tables of a nuPlan GeoPackage, projected: pyogrio reads the rows, after sqlite3 has looked the file over."""

import itertools
import math
import re
import sqlite3
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import pyproj
import shapely

_MAGIC = b"SQLite format 3\0"
_ID = "fid"
_EPSG = re.compile(r"epsg:\d{4,6}", re.IGNORECASE)
_PLAIN_TABLE = re.compile(r"create\s+table\b", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Rows of one layer in the order of their ids.

    Attributes:
      ids: Primary keys as decimal strings.
      geometry: Object array of two-dimensional shapely geometries with finite coordinates, projected, as long as `ids`.
      columns: Values of the columns asked for, each as long as `ids`; NULL is None, and every other value has the type
        that it is stored with, whatever the column declares.
    """

    ids: tuple[str, ...]
    geometry: np.ndarray
    columns: dict[str, tuple[Any, ...]]

    def identifiers(self, column: str) -> tuple[str | None, ...]:
        """A column of references as decimal strings, None for NULL; see `decimal_id`.

        Raises:
          ValueError: A value is no whole number.
        """
        try:
            return tuple(map(decimal_id, self.columns[column]))
        except ValueError as error:
            raise ValueError(f"Column {column!r}: {error}") from error


def decimal_id(value: Any) -> str | None:
    """An id as a decimal string, however its column is typed; None for NULL, NaN and the empty string.

    Raises:
      ValueError: The value is no whole number.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        number = int(value)
        if isinstance(value, bytes) or number != float(value):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{_short(value)} is no id: ids are whole numbers.") from None
    return str(number)


class GeoPackage:
    """Reads layers of one file, projected to the plane that its `meta` layer names.

    sqlite3 looks at the schema and the pages of each table, because GDAL by itself runs whatever a view in a table's
    place selects, without end if it never ends, and passes over rows that it cannot reach. pyogrio reads every row, as
    SQLite literals: read by declared type, a number column's text and fractions would become 0 and whole numbers.

    Args:
      path: The file; opened read-only, and closed again by `with`.

    Raises:
      OSError: The file cannot be opened.
      ValueError: The file is no GeoPackage, or its `meta` layer names no projection.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            is_database = file.read(len(_MAGIC)) == _MAGIC
        if not is_database:
            raise ValueError(f"{path} is no nuPlan map: it is no SQLite database. Download the map again.")
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        self._transformers: dict[str, pyproj.Transformer] = {}
        try:
            self._geometry_columns = self._look_over()
            self.crs = self._read_projection()
        except (sqlite3.Error, ValueError) as error:
            self._connection.close()
            raise ValueError(
                f"{path} is no nuPlan map: its layers and the row projectedCoordSystem of `meta` could not be read "
                f"({type(error).__name__}: {error}). Download the map again."
            ) from error

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
          ValueError: The layer or a column does not exist, the table is damaged, an id is missing or repeated, or a
            geometry is missing, does not parse or is not finite. All name the path.
        """
        if layer not in self._geometry_columns:
            raise ValueError(
                f"{self.path} has no layer {layer!r}; it has {sorted(self._geometry_columns)}. Download the map again."
            )
        ids, geometry, crs, values = self._read(layer, self._geometry_columns[layer], columns)
        if not all(isinstance(fid, int) for fid in ids) or any(a >= b for a, b in itertools.pairwise(ids)):
            raise ValueError(f"{self.path}: layer {layer!r} has rows without an id of their own in column {_ID!r}.")
        projected = self._project(layer, ids, self._parse(layer, ids, geometry), crs)
        return Table(tuple(map(str, ids)), projected, dict(zip(columns, values, strict=True)))

    def _look_over(self) -> dict[str, str]:
        """Layers and the names of their geometry columns.

        Raises:
          ValueError: A table that GDAL would read is a view or a virtual table.
        """
        definitions = self._connection.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view')")
        computed = {str(name).lower() for name, sql in definitions if not _PLAIN_TABLE.match(str(sql))}
        read = {name for name in computed if name.startswith("gpkg")}
        if not read:
            registered = self._connection.execute("SELECT table_name FROM gpkg_contents").fetchall()
            read = computed & {str(name).lower() for (name,) in registered}
        if read:
            raise ValueError(f"{sorted(read)} are views or virtual tables instead of stored tables")
        return dict(self._connection.execute("SELECT table_name, column_name FROM gpkg_geometry_columns").fetchall())

    def _read_projection(self) -> pyproj.CRS:
        _, _, _, (keys, values) = self._read("meta", None, ("key", "value"))
        name = dict(zip(keys, values, strict=True)).get("projectedCoordSystem")
        if not isinstance(name, str) or not _EPSG.fullmatch(name):
            raise ValueError(f"projectedCoordSystem is {_short(name)} instead of epsg:<number>")
        try:
            crs = pyproj.CRS.from_user_input(name)
        except pyproj.exceptions.CRSError as error:
            raise ValueError(f"projectedCoordSystem {name} is unknown: {error}") from error
        if not crs.is_projected:
            raise ValueError(f"projectedCoordSystem {name} is {crs.name}, which is no plane")
        return crs

    def _read(
        self, layer: str, geometry_column: str | None, columns: Sequence[str]
    ) -> tuple[tuple[Any, ...], np.ndarray | None, str | None, list[tuple[Any, ...]]]:
        """Ids, well-known binary, coordinate system and columns of a stored table, in the order of its ids."""
        wanted = (_ID, *([] if geometry_column is None else [geometry_column]), *columns)
        self._check_table(layer, wanted)
        chosen = [f"quote(t.{_quoted(column)}) AS value_{i}" for i, column in enumerate((_ID, *columns))]
        if geometry_column is not None:
            chosen.append(f"t.{_quoted(geometry_column)}")
        # The columns are qualified, or SQLite would take an unknown quoted name for a string.
        query = f"SELECT {', '.join(chosen)} FROM {_quoted(layer)} AS t ORDER BY t.{_quoted(_ID)}"
        source, options = _gdal_arguments(self.path)
        try:
            with warnings.catch_warnings():
                # GDAL's remarks, such as on an application id that it does not know, are no errors.
                warnings.simplefilter("ignore", RuntimeWarning)
                meta, _, geometry, fields = pyogrio.raw.read(source, sql=query, force_2d=True, **options)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path}: layer {layer!r} could not be read: {error}.") from error
        by_name = dict(zip(meta["fields"], fields, strict=True))
        ids, *values = (tuple(map(_literal, by_name[f"value_{i}"])) for i in range(1 + len(columns)))
        return ids, geometry, meta["crs"], values

    def _check_table(self, layer: str, columns: Sequence[str]) -> None:
        """Raises ValueError if the table lacks a column, computes one or has damaged pages."""
        try:
            hidden = {row[1]: row[6] for row in self._connection.execute(f"PRAGMA table_xinfo({_quoted(layer)})")}
            for column in columns:
                if column not in hidden:
                    raise ValueError(
                        f"{self.path}: layer {layer!r} has no column {column!r}; it has {list(hidden)}. "
                        "Download the map again."
                    )
                if hidden[column]:
                    raise ValueError(f"{self.path}: column {column!r} of layer {layer!r} is computed, not stored.")
            (verdict,) = self._connection.execute(f"PRAGMA quick_check({_quoted(layer)})").fetchone()
        except sqlite3.Error as error:
            raise ValueError(f"{self.path}: layer {layer!r} could not be read: {error}.") from error
        if verdict != "ok":
            raise ValueError(f"{self.path}: layer {layer!r} is damaged: {verdict}. Download the map again.")

    def _parse(self, layer: str, ids: Sequence[int], bodies: np.ndarray | None) -> np.ndarray:
        if bodies is None:
            raise ValueError(f"{self.path}: layer {layer!r} has no geometry. Download the map again.")
        with np.errstate(invalid="ignore"):
            geometry = np.asarray(shapely.from_wkb(bodies, on_invalid="ignore"), dtype=object)
        unread = np.flatnonzero(shapely.is_missing(geometry))
        if len(unread):
            raise ValueError(
                f"{self.path}: {layer} {ids[unread[0]]} has no readable geometry ({len(unread)} of {len(ids)} rows). "
                "Download the map again."
            )
        return geometry

    def _project(self, layer: str, ids: Sequence[int], geometry: np.ndarray, crs: str | None) -> np.ndarray:
        if not len(geometry):
            return geometry
        if crs not in self._transformers:
            try:
                if not _EPSG.fullmatch(crs or ""):
                    raise ValueError("they are not of the EPSG register")
                self._transformers[crs] = pyproj.Transformer.from_crs(crs, self.crs, always_xy=True)
            except (ValueError, pyproj.exceptions.ProjError) as error:
                raise ValueError(
                    f"{self.path}: coordinates of layer {layer!r} ({crs}) are unknown: {error}."
                ) from error
        xy, rows = shapely.get_coordinates(geometry, return_index=True)
        with np.errstate(invalid="ignore"):
            moved = np.stack(self._transformers[crs].transform(xy[:, 0], xy[:, 1]), axis=-1)
        wrong = np.flatnonzero(~np.isfinite(moved).all(axis=-1))
        if len(wrong):
            raise ValueError(
                f"{self.path}: {layer} {ids[rows[wrong[0]]]} has a point at {xy[wrong[0]].tolist()}, which is no place "
                f"in {self.crs.name}. Download the map again."
            )
        return np.asarray(shapely.set_coordinates(geometry, moved), dtype=object)


def _gdal_arguments(path: Path) -> tuple[str, dict[str, str]]:
    """Name and options with which pyogrio opens this very file."""
    name = str(path.resolve())
    # In a plain path pyogrio takes a `!` for the border of an archive.
    source = f"/vsisubfile/0,{name}" if "!" in name else name
    # immutable: no lock or journal files, so that maps on read-only and network disks open; GDAL then takes a `%` for
    # an escape. Only registered layers are listed, so that GDAL looks at no other table or view.
    return source, {"IMMUTABLE": "NO" if "%" in name else "YES", "LIST_ALL_TABLES": "NO"}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> Any:
    """The value of what SQLite's `quote` writes."""
    if text == "NULL":
        return None
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    if text.startswith("X'"):
        return bytes.fromhex(text[2:-1])
    return float(text) if "." in text else int(text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
