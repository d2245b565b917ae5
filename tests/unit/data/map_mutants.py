"""Reads mutants of map files, a line of JSON for each; `geopackage_fuzz_test.py` runs this as a program:

    python map_mutants.py REAL_MAPS SMALL_MAP FOLDER FIRST_SEED END_SEED SECONDS_PER_MUTANT

A mutant is reproduced by its seed. One that takes too long ends the process by a signal.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
from map_mutations import mutate

from recogdrive.data.maps import MAP_INDEX, NuPlanMap

EXTRA_MEMORY_BYTES = 1 << 30
"""Address space that reading mutants may take beyond what reading the small map took."""
CITY, VERSION = "sg-one-north", "9.17.1964"


def empty_folder(folder: Path) -> Path:
    """Path for a map in a maps folder that has none."""
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / CITY / VERSION / "map.gpkg"
    path.parent.mkdir(parents=True)
    (folder / MAP_INDEX).write_text(json.dumps({CITY: {"version": VERSION}}))
    return path


def verdict(path: Path) -> str:
    """What reading the map comes to; `map of` and `error:` are fine."""
    before = sorted(p.name for p in path.parent.iterdir())
    with tempfile.TemporaryFile() as written:
        terminal = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            city = NuPlanMap(path.parents[2], CITY)
            use(city)
            result = f"map of {sum(map(len, city.elements.values()))} elements"
        except (ValueError, OSError) as error:
            inside = "in use" if "city" in locals() else ""
            result = f"error: {error}"[:500] if str(path) in str(error) and not inside else f"{inside} {error!r}"
        except Exception:
            result = traceback.format_exc()[-2000:]
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        written.seek(0)
        noise = written.read().decode(errors="replace")
    if noise:
        return f"wrote to the terminal: {noise[:500]}"
    after = sorted(p.name for p in path.parent.iterdir())
    return result if before == after else f"left files behind: {sorted(set(after) - set(before))}"


def use(city: NuPlanMap) -> None:
    """Queries around a pose, and what everything downstream relies on."""
    every = [element for elements in city.elements.values() for element in elements]
    middle = every[len(every) // 2] if every else None
    xy = np.array([365_000.0, 143_000.0]) if middle is None else middle.polygon[0]
    assert middle is None or middle.id in {element.id for element in city.near(xy, 1.0, middle.layer)}
    for layer, elements in city.elements.items():
        assert city.near(xy, 3e7, layer) == elements
        assert {element.id for element in city.containing(xy, layer)} <= {element.id for element in elements}
        assert (city.nearest(xy, layer) is None) == (not elements)
    city.drivable_area(xy, 50.0)
    for element in (*every, *city.patch(np.array([*xy, 1.0]), 100.0).elements):
        assert city.element(element.layer, element.id).id == element.id
        shapes = (element.polygon, *element.holes, element.centerline, element.left_boundary, element.right_boundary)
        assert all(np.isfinite(shape).all() and len(shape) >= 2 for shape in shapes if shape is not None)
        links = (*element.predecessors, *element.successors, *element.stop_lines, element.roadblock_id or "0")
        assert all(isinstance(link, str) and str(int(link)) == link for link in links)
        assert len(element.polygon) >= 3 and np.isfinite(element.speed_limit_mps or 0.0)


def main(real: str, small: str, folder: str, first: str, end: str, seconds: str) -> None:
    sources = [Path(small), *sorted(Path(real).rglob("map.gpkg"))]
    path = empty_folder(Path(folder))
    shutil.copyfile(small, path)
    assert verdict(path).startswith("map of"), verdict(path)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + EXTRA_MEMORY_BYTES, resource.RLIM_INFINITY))
    print(json.dumps("ready"), flush=True)
    for seed in range(int(first), int(end)):
        path = empty_folder(Path(folder))
        mutate(seed, sources, path)
        signal.alarm(int(seconds))
        result = verdict(path)
        signal.alarm(0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
