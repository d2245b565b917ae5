"""Mutated map files give an error that names the file, or a map that answers queries: no crash, no hang, no flood.

GDAL, GEOS and SQLite are C code, so `map_mutants.py` reads the mutants in child processes with limits on time and
memory: a crash is then a failure that names its mutant.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import shapely

MUTANTS = round(500 * float(os.environ.get("RECOGDRIVE_FUZZ_CASES", "1")))
"""The variable multiplies their number."""
CHUNKS = 5
SECONDS_PER_MUTANT = 20
PROGRAM = Path(__file__).with_name("map_mutants.py")


def read_mutants(real: Path, small: Path, folder: Path, first: int, end: int) -> tuple[list[str], str | None]:
    """Verdicts of the mutants that a child got through, and what stopped it."""
    arguments = [sys.executable, PROGRAM, real, small, folder, first, end, SECONDS_PER_MUTANT]
    child = subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=60 + SECONDS_PER_MUTANT * (end - first),
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    ready, *verdicts = [json.loads(line) for line in child.stdout.splitlines()] or ["nothing"]
    assert ready == "ready", child.stderr
    if child.returncode == -signal.SIGALRM:
        return verdicts, f"took more than {SECONDS_PER_MUTANT} s"
    if child.returncode:
        return verdicts, f"ended the process ({child.returncode}): {child.stderr[-2000:]}"
    return verdicts, None


@pytest.mark.heavy
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_mutated_map_is_an_error_or_a_map(navsim_mini, write_road, tmp_path, chunk):
    root = write_road(road_segments=[(1, shapely.box(0, -2, 90, 2))], stop_polygons=[(12, shapely.box(38, -2, 40, 2))])
    (small,) = root.rglob("map.gpkg")
    seeds = range(MUTANTS * chunk // CHUNKS, MUTANTS * (chunk + 1) // CHUNKS)
    verdicts: list[str] = []
    while len(verdicts) < len(seeds):
        first = seeds.start + len(verdicts)
        read, problem = read_mutants(navsim_mini / "maps", small, tmp_path / "mutants", first, seeds.stop)
        verdicts += read if problem is None else [*read, problem]
    failures = [
        f"mutant {seed}: {verdict}"
        for seed, verdict in zip(seeds, verdicts, strict=True)
        if not verdict.startswith(("map of", "error:"))
    ]
    assert not failures, "\n".join(failures)
    # Neither end is rare: mutants that read as a map, and mutants that do not.
    maps = sum(verdict.startswith("map of") for verdict in verdicts)
    assert len(seeds) // 20 < maps < len(seeds) * 19 // 20
