"""Mutations of map files: of single bytes, of tables and geometries by SQL, and of what the path leads to."""

import contextlib
import random
import shutil
import sqlite3
from pathlib import Path

from hostile_geometry import hostile_blob

LAYERS = (
    "baseline_paths",
    "boundaries",
    "carpark_areas",
    "gen_lane_connectors_scaled_width_polygons",
    "intersections",
    "lane_connectors",
    "lane_group_connectors",
    "lane_groups_polygons",
    "lanes_polygons",
    "road_segments",
)
TABLES = (*LAYERS, "meta", "gpkg_contents", "gpkg_geometry_columns", "gpkg_spatial_ref_sys")
ENDLESS = "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n)"
VALUES = (
    *(None, 0, -1, 1, 2**63 - 1, 1.5, 1e308, float("inf"), b"\xff\x00", b"1", "", "a", "0x10", "nan", "1e400", "1_0"),
    *("1,2,,x", "12;13", "\0", "9" * 5000, "x" * 1_000_000, "'\"; DROP TABLE meta", "\u0661", "http://localhost/x"),
    *("epsg:4326", "epsg:32631", "EPSG:32648", "+proj=utm +zone=48", "epsg:1", "PROJCS[" * 1000),
)


# Mutations by SQL


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]


def _cell(draw: random.Random, connection: sqlite3.Connection, tables: tuple[str, ...], value: object) -> None:
    table = draw.choice(tables)
    column = draw.choice([c for c in _columns(connection, table) if c != "geom"])
    row = (
        "" if draw.random() < 0.3 else f'WHERE rowid = (SELECT rowid FROM "{table}" LIMIT 1 OFFSET {draw.randrange(3)})'
    )
    connection.execute(f'UPDATE OR REPLACE "{table}" SET "{column}" = ? {row}', (value,))


def change_a_value(draw, connection):
    _cell(draw, connection, LAYERS, draw.choice(VALUES))


def change_what_describes_the_file(draw, connection):
    _cell(draw, connection, TABLES[len(LAYERS) :], draw.choice(VALUES))


def change_a_geometry(draw, connection):
    table = draw.choice(LAYERS)
    value = hostile_blob(draw) if draw.random() < 0.9 else draw.choice(VALUES)
    row = f'WHERE fid = (SELECT min(fid) FROM "{table}")' if draw.random() < 0.8 else ""
    connection.execute(f'UPDATE "{table}" SET geom = ? {row}', (value,))


def change_a_projection(draw, connection):
    connection.execute("UPDATE meta SET value = ? WHERE key = 'projectedCoordSystem'", (draw.choice(VALUES),))


def drop_a_table(draw, connection):
    connection.execute(f'DROP TABLE "{draw.choice(TABLES)}"')


def empty_a_table(draw, connection):
    connection.execute(f'DELETE FROM "{draw.choice(TABLES)}"')


def rename_a_table(draw, connection):
    name = draw.choice(("x", "a b", "'", "sqlite"))
    connection.execute(f'ALTER TABLE "{draw.choice(TABLES)}" RENAME TO "{name}"')


def swap_two_tables(draw, connection):
    one, other = draw.sample(LAYERS, 2)
    for before, after in ((one, "swapped"), (other, one), ("swapped", other)):
        connection.execute(f'ALTER TABLE "{before}" RENAME TO "{after}"')


def drop_a_column(draw, connection):
    table = draw.choice(TABLES)
    connection.execute(f'ALTER TABLE "{table}" DROP COLUMN "{draw.choice(_columns(connection, table))}"')


def rename_a_column(draw, connection):
    table, name = draw.choice(TABLES), draw.choice(("x", "fid2", "OGC_FID"))
    connection.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{draw.choice(_columns(connection, table))}" TO "{name}"')


def retype_a_table(draw, connection):
    """Other column types, no primary key, no row ids: whatever the table is made of."""
    table = draw.choice(TABLES)
    columns = _columns(connection, table)
    kinds = draw.choice(("TEXT", "REAL", "BLOB", "BOOLEAN", "DATE", "INTEGER", "", "TEXT NOT NULL", "NUMERIC UNIQUE"))
    keyed = draw.choice(("", "", ", PRIMARY KEY (fid)", ", PRIMARY KEY (fid)) WITHOUT ROWID --"))
    definition = ", ".join(f'"{c}" {kinds if draw.random() < 0.7 else ""}' for c in columns)
    connection.execute(f'ALTER TABLE "{table}" RENAME TO old')
    connection.execute(f'CREATE TABLE "{table}" ({definition}{keyed if "fid" in columns else ""}\n)')
    connection.execute(f'INSERT INTO "{table}" SELECT * FROM old')


def repeat_rows(draw, connection):
    table = draw.choice(LAYERS)
    connection.execute(f'ALTER TABLE "{table}" RENAME TO old')
    connection.execute(f'CREATE TABLE "{table}" AS SELECT * FROM old UNION ALL SELECT * FROM old')


def replace_by_a_view(draw, connection):
    table = draw.choice(TABLES)
    condition = draw.choice(("1", f"{ENDLESS} > 0", "length(zeroblob(999999999)) > 0"))
    connection.execute(f'ALTER TABLE "{table}" RENAME TO old')
    connection.execute(f'CREATE VIEW "{table}" AS SELECT * FROM old WHERE {condition}')


def replace_by_a_virtual_table(draw, connection):
    table, module = draw.choice(TABLES), draw.choice(("rtree(fid, a, b)", "fts4(fid, geom)"))
    connection.execute(f'DROP TABLE "{table}"')
    connection.execute(f'CREATE VIRTUAL TABLE "{table}" USING {module}')


def compute_a_column(draw, connection):
    table = draw.choice(LAYERS)
    column = draw.choice([c for c in _columns(connection, table) if c != "fid"])
    value = draw.choice(("zeroblob(999999999)", "1", "printf('%.*c', 900000000, 'x')"))
    connection.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "replaced"')
    connection.execute(f'ALTER TABLE "{table}" ADD COLUMN "{column}" AS ({value})')


def check_something_large(draw, connection):
    table = draw.choice(LAYERS)
    value = draw.choice(("zeroblob(999999999)", "printf('%.*c', 900000000, 'x')", "randomblob(99)"))
    connection.execute(f'ALTER TABLE "{table}" RENAME TO old')
    connection.execute(f'CREATE TABLE "{table}" (fid INTEGER PRIMARY KEY, geom BLOB CHECK (length({value}) > 0))')


REFERENCES = (
    *(("lane_connectors", c) for c in ("exit_lane_fid", "entry_lane_fid", "lane_group_connector_fid")),
    *(("lane_group_connectors", c) for c in ("from_lane_group_fid", "to_lane_group_fid")),
    *(("lanes_polygons", c) for c in ("lane_group_fid", "left_boundary_fid", "right_boundary_fid")),
    *(("baseline_paths", c) for c in ("lane_fid", "lane_connector_fid")),
    ("gen_lane_connectors_scaled_width_polygons", "lane_connector_fid"),
)


def dangling_and_cyclic_ids(draw, connection):
    table, column = draw.choice(REFERENCES)
    value = draw.choice(("fid", "999999", "-fid", "NULL", "fid % 3", "1e18"))
    connection.execute(f"UPDATE {table} SET {column} = {value}")


def many_rows(draw, connection):
    """Thousands of connectors at one lane, or of areas at one place."""
    numbers = "WITH RECURSIVE n(x) AS (SELECT 1000000 UNION ALL SELECT x + 1 FROM n LIMIT 5000)"
    table = draw.choice(LAYERS)
    columns = ", ".join("n.x" if c == "fid" else f'"{c}"' for c in _columns(connection, table))
    connection.execute(f'{numbers} INSERT INTO "{table}" SELECT {columns} FROM n, (SELECT * FROM "{table}" LIMIT 1)')


def add_a_huge_value(draw, connection):
    table = draw.choice(LAYERS)
    column = draw.choice(_columns(connection, table))
    connection.execute(
        f'UPDATE "{table}" SET "{column}" = zeroblob(20000000) WHERE fid = (SELECT min(fid) FROM "{table}")'
    )


def change_a_definition(draw, connection):
    """The schema's own text, which SQLite reads back without a look."""
    text = draw.choice(
        ("CREATE TABLE x(y", "CREATE VIEW {0} AS SELECT 1", "", "CREATE TABLE {0} (fid, geom, {1})", "\0")
    )
    name = draw.choice(TABLES)
    connection.execute("PRAGMA writable_schema = 1")
    if draw.getrandbits(1):
        filled = text.format(name, ", ".join(f"c{i}" for i in range(1900)))
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (filled, name))
    else:
        connection.execute(
            "UPDATE sqlite_master SET rootpage = ? WHERE name = ?", (draw.choice((0, 1, 2, 10**9)), name)
        )


def change_the_file_header(draw, connection):
    changes = (
        "application_id = 1",
        "user_version = 99999",
        "journal_mode = wal",
        "auto_vacuum = 1",
        "encoding = 'UTF-16le'",
    )
    connection.execute(f"PRAGMA {draw.choice(changes)}")
    if draw.getrandbits(1):
        connection.execute("VACUUM")


SQL_MUTATIONS = (
    *(change_a_value,) * 4,
    *(change_a_geometry,) * 6,
    *(dangling_and_cyclic_ids,) * 2,
    change_what_describes_the_file,
    change_a_projection,
    drop_a_table,
    empty_a_table,
    rename_a_table,
    swap_two_tables,
    drop_a_column,
    rename_a_column,
    retype_a_table,
    repeat_rows,
    replace_by_a_view,
    replace_by_a_virtual_table,
    compute_a_column,
    check_something_large,
    many_rows,
    add_a_huge_value,
    change_a_definition,
    change_the_file_header,
)


def mutate_by_sql(draw: random.Random, path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    with contextlib.closing(connection):
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            # A mutation that an earlier one left nothing for changes nothing.
            with contextlib.suppress(sqlite3.Error, IndexError):
                draw.choice(SQL_MUTATIONS)(draw, connection)


# Mutations byte by byte


def _place(draw: random.Random, content: bytearray) -> int:
    """A position, often in the first page, where the schema is."""
    return draw.randrange(min(len(content), 4096) if draw.random() < 0.3 else len(content))


def flip_bits(draw, content):
    for _ in range(draw.choice((1, 8, 64, 1000))):
        content[_place(draw, content)] ^= 1 << draw.randrange(8)
    return content


def overwrite_bytes(draw, content):
    start = _place(draw, content)
    size = draw.choice((1, 4, 64, 4096))
    content[start : start + size] = draw.choice((b"\0" * size, b"\xff" * size, draw.randbytes(size)))
    return content


def cut_the_end(draw, content):
    return content[: draw.choice((0, 1, 15, 16, 99, 100, 512, 4096, draw.randrange(len(content))))]


def add_to_the_end(draw, content):
    return content + draw.randbytes(draw.choice((1, 100, 4096, 100_000)))


def zero_a_page(draw, content):
    page = 4096 * draw.randrange(max(1, len(content) // 4096))
    content[page : page + 4096] = bytes(len(content[page : page + 4096]))
    return content


def copy_a_page(draw, content):
    source, target = (4096 * draw.randrange(max(1, len(content) // 4096)) for _ in range(2))
    content[target : target + 4096] = content[source : source + len(content[target : target + 4096])]
    return content


def move_the_rest(draw, content):
    start = _place(draw, content)
    if draw.getrandbits(1):
        del content[start : start + draw.choice((1, 7, 4096))]
    else:
        content[start:start] = draw.randbytes(draw.choice((1, 7, 4096)))
    return content


def change_a_field_of_the_header(draw, content):
    start, size = draw.choice(
        ((16, 2), (18, 1), (19, 1), (20, 1), (28, 4), (32, 4), (44, 4), (52, 4), (56, 4), (100, 8))
    )
    content[start : start + size] = draw.choice((bytes(size), b"\xff" * size, draw.randbytes(size)))
    return content


def change_a_geometry_in_place(draw, content):
    """Bytes after the magic number of a geometry: header, type, counts, coordinates."""
    places = [i for i in range(len(content) - 60) if content[i : i + 3] == b"GP\0"]
    if places:
        start = draw.choice(places) + draw.randrange(2, 60)
        content[start : start + 4] = draw.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", draw.randbytes(4)))
    return content


BYTE_MUTATIONS = (
    *(flip_bits, overwrite_bytes, cut_the_end, add_to_the_end, zero_a_page, copy_a_page, move_the_rest),
    *(change_a_field_of_the_header, change_a_geometry_in_place, change_a_geometry_in_place),
)


def mutate_bytes(draw: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 4))):
        content = draw.choice(BYTE_MUTATIONS)(draw, content) if content else content
    path.write_bytes(content)


# Mutations of what the path leads to


def replace_the_file(draw: random.Random, path: Path) -> None:
    kept = path.with_name("kept.gpkg")
    path.rename(kept)
    kind = draw.randrange(7)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(kept)
    elif kind == 2:
        path.symlink_to(path.with_name("nowhere"))
    elif kind == 3:
        path.symlink_to(path)
    elif kind == 4:
        path.write_text("<OGRVRTDataSource><OGRVRTLayer name='walkways'><SrcDataSource>kept.gpkg</SrcDataSource>")
    elif kind == 5:
        path.write_text('{"type": "FeatureCollection", "features": []}')
    elif kind == 6:
        shutil.make_archive(str(path), "zip", path.parent, kept.name)
        path.with_name("map.gpkg.zip").rename(path)


def mutate(seed: int, sources: list[Path], path: Path) -> None:
    """Writes mutant `seed` to `path`: of the first source, or less often of another one.

    Even seeds are mutated byte by byte, odd ones by SQL.
    """
    draw = random.Random(seed)
    shutil.copyfile(sources[0] if draw.random() < 0.85 else draw.choice(sources[1:]), path)
    if draw.random() < 0.03:
        replace_the_file(draw, path)
    elif seed % 2:
        mutate_by_sql(draw, path)
    else:
        mutate_bytes(draw, path)
