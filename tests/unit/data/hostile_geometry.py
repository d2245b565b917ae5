"""Geometries of GeoPackages that are damaged, of another kind than a map's, or made to overwhelm what parses them."""

import random
import struct
from collections.abc import Callable

import numpy as np
import shapely


def line(*points: tuple[float, float]) -> bytes:
    return b"\x01\x02\0\0\0" + struct.pack("<I", len(points)) + b"".join(struct.pack("<2d", *p) for p in points)


def polygon(*rings: list[tuple[float, float]]) -> bytes:
    return b"\x01\x03\0\0\0" + struct.pack("<I", len(rings)) + b"".join(line(*ring)[5:] for ring in rings)


HERE = (103.7866, 1.2935)
CORNERS = [HERE, (HERE[0] + 1e-4, HERE[1]), (HERE[0] + 1e-4, HERE[1] + 1e-4), HERE]
GEOMETRY_TYPES = (0, 1, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 17, 99, 1003, 2003, 3003, 0x80000003, 0x20000003, 0xFFFFFFFF)
GEOMETRIES: tuple[Callable[[random.Random], bytes], ...] = (
    lambda draw: draw.randbytes(draw.choice((0, 1, 5, 9, 200))),
    lambda draw: b"\x01\x03\0\0\0" + struct.pack("<I", draw.choice((2**31 - 1, 2**32 - 1, 2**28))),
    lambda draw: b"\x01\x03\0\0\0\x01\0\0\0" + struct.pack("<I", draw.choice((2**31 - 1, 2**32 - 1, 2**28))),
    lambda draw: b"\x01\x02\0\0\0" + struct.pack("<I", draw.choice((2**31 - 1, 2**32 - 1, 2**28))),
    lambda draw: b"\x01\x06\0\0\0" + struct.pack("<I", 2**31 - 1) + polygon(CORNERS),
    lambda draw: b"\x01" + struct.pack("<I", draw.choice(GEOMETRY_TYPES)) + polygon(CORNERS)[5:],
    lambda draw: b"\x01\x07\0\0\0\x01\0\0\0" * draw.choice((1, 40, 1000, 100_000)) + polygon(CORNERS),
    lambda draw: b"\x01\x06\0\0\0\x01\0\0\0" * draw.choice((1, 2, 50_000)) + polygon(CORNERS),
    lambda draw: b"\x01\x06\0\0\0\x02\0\0\0" + polygon(CORNERS) * 2,
    lambda draw: b"\x01\x05\0\0\0\x01\0\0\0" + line(*CORNERS),
    lambda draw: b"\x01\x0a\0\0\0\x01\0\0\0" + line(*CORNERS),
    lambda draw: b"\x01\x08\0\0\0" + line(*CORNERS[:3])[5:],
    lambda draw: polygon(CORNERS[:3]),
    lambda draw: polygon([HERE] * draw.choice((1, 2, 3, 4))),
    lambda draw: polygon(CORNERS, CORNERS, CORNERS),
    lambda draw: polygon(),
    lambda draw: polygon([]),
    lambda draw: line(),
    lambda draw: line(HERE),
    lambda draw: line(HERE, HERE),
    lambda draw: polygon(
        [*CORNERS[:2], (draw.choice((np.nan, np.inf, -np.inf, 1e300, 1e-320, 91.0, 720.0)), 1.0), HERE]
    ),
    lambda draw: line(HERE, (103.0, draw.choice((np.nan, np.inf, -np.inf, 1e300, 90.0, -91.0)))),
    lambda draw: polygon([*CORNERS[:3], *[(HERE[0] + 1e-4, HERE[1] + 1e-4)] * 200_000, HERE]),
    lambda draw: polygon([(draw.uniform(103, 104), draw.uniform(1, 2)) for _ in range(300)] + [HERE]),
    lambda draw: shapely.to_wkb(shapely.force_3d(shapely.from_wkb(polygon(CORNERS)), 5.0), flavor="extended"),
    lambda draw: shapely.to_wkb(shapely.from_wkb(polygon(CORNERS)), byte_order=0),
)


def hostile_blob(draw: random.Random) -> bytes:
    """A geometry with a header, the header hostile too now and then."""
    body = draw.choice(GEOMETRIES)(draw)
    if draw.random() < 0.7:
        return b"GP\0\x01" + struct.pack("<i", 4326) + body
    envelope = draw.randbytes(draw.choice((0, 8, 32, 48, 64)))
    magic = draw.choice((b"GP", b"GP", b"gp", b"\0\0"))
    return magic + draw.randbytes(2) + struct.pack("<i", draw.choice((4326, 0, -1, 32648))) + envelope + body
