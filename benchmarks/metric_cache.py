"""Measures making scenes to score in: scenes per second and core, memory, the share of each part, bytes a scene.

    python benchmarks/metric_cache.py                  # navsim_mini, from OPENSCENE_DATA_ROOT or ../shared/data

One process on one core makes all scenes of navsim_mini, writes them and reads them back, in several rounds; the first,
which compiles and reads the maps, is timed apart. The time for navtrain on 16 cores is extrapolated from one core,
since shards share no work.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAVTRAIN_SCENES = 103_288
CORES = 16
GOAL_HOURS = 3.0
SHARED = Path(__file__).resolve().parents[2] / "shared"


def main() -> None:
    """Prints the tables."""
    arguments = _parse()
    if not arguments.measure:
        # JAX sizes its thread pool when it starts, so that one core needs a process of its own.
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure"], check=True)
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _measure(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--geometry", choices=["float32", "float64"], default="float32")
    parser.add_argument("--measure", action="store_true", help="measure in this process, on one core")
    return parser.parse_args()


def _data_root() -> Path:
    root = Path(os.environ.get("OPENSCENE_DATA_ROOT", SHARED / "data" / "navsim_mini"))
    if not (root / "navsim_logs" / "mini").is_dir():
        sys.exit(f"There are no logs of navsim_mini at {root}; set OPENSCENE_DATA_ROOT.")
    return root


def _measure(arguments: argparse.Namespace) -> None:
    from recogdrive.pdm.machine import machine_stamp

    stamp = machine_stamp()
    print(f"{stamp['cpu']}, one core; NumPy {stamp['numpy']}, shapely {stamp['shapely']}, jax {stamp['jax']}\n")
    start = time.perf_counter()
    maker = _maker(arguments.geometry)
    opening = time.perf_counter() - start
    positions = range(len(maker.tokens))
    folder = Path(tempfile.mkdtemp())
    try:
        rounds = [_round(maker, positions, folder / str(i)) for i in range(arguments.rounds + 1)]
        reading = _reading(folder / "0", arguments.rounds)
        stored = _bytes_a_scene(folder / "0")
    finally:
        shutil.rmtree(folder)
    _print_time(maker, opening, rounds)
    _print_size(maker, stored, reading)
    print(f"\nPeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _maker(geometry: str):
    """All scenes of navsim_mini."""
    from recogdrive.data.navsim import NavsimScenes
    from recogdrive.data.scene_filter import SceneFilter
    from recogdrive.pdm.closed.maker import NavsimMetricScenes

    root = str(_data_root())
    made = NavsimMetricScenes(lambda: NavsimScenes(root, "mini", SceneFilter(frame_interval=1)), geometry=geometry)
    assert made.tokens
    return made


def _round(maker, positions, folder: Path) -> dict[str, float]:
    """Makes and writes all scenes once; seconds of every part and of the whole."""
    from recogdrive.pdm.cache import PdmCacheWriter

    seconds: dict[str, float] = {}
    writing, start = 0.0, time.perf_counter()
    writer = PdmCacheWriter(folder, origin=maker.describe())
    for made in maker.make(positions):
        for part, value in made.seconds.items():
            seconds[part] = seconds.get(part, 0.0) + value
        begun = time.perf_counter()
        writer.add(made.scene, made.map_vertices)
        writing += time.perf_counter() - begun
    begun = time.perf_counter()
    writer.close()
    end = time.perf_counter()
    seconds["writing"] = writing + end - begun
    seconds["whole"] = end - start
    seconds["rest (loop, padding)"] = seconds["whole"] - sum(v for k, v in seconds.items() if k != "whole")
    return seconds


def _reading(folder: Path, rounds: int) -> float:
    """Seconds to read a scene from the container, median of the rounds."""
    from recogdrive.pdm.cache import PdmCache

    times = []
    for _ in range(rounds):
        cache = PdmCache(folder)
        start = time.perf_counter()
        for position in range(len(cache)):
            cache[position]
        times.append((time.perf_counter() - start) / len(cache))
    return statistics.median(times)


def _bytes_a_scene(folder: Path) -> dict[str, float]:
    """Bytes a scene of the whole container and of the polygons shared in it."""
    from recogdrive.pdm.cache import PdmCache
    from recogdrive.pdm.shard import open_shard

    cache = PdmCache(folder)
    shards = [open_shard(folder / shard["file"]) for shard in cache.manifest["shards"]]
    maps = sum(len(table.to_bytes()) for shard in shards for table in shard.read_tables().values())
    return {"all": cache.manifest["bytes"] / len(cache), "maps": maps / len(cache)}


def _print_time(maker, opening: float, rounds: list[dict[str, float]]) -> None:
    count, timed = len(maker.tokens), rounds[1:]
    whole = statistics.median(r["whole"] for r in timed)
    print(f"{count} scenes of navsim_mini, median of {len(timed)} rounds\n")
    print(f"{'part':<40} {'ms a scene':>10} {'share':>7}")
    for part in (p for p in timed[0] if p != "whole"):
        value = statistics.median(r[part] for r in timed)
        print(f"{part:<40} {1e3 * value / count:10.2f} {value / whole:7.1%}")
    rate = count / whole
    hours = NAVTRAIN_SCENES / rate / CORES / 3600
    print(f"{'whole':<40} {1e3 * whole / count:10.2f}\n\n{rate:.2f} scenes a second and core")
    needed = NAVTRAIN_SCENES / (GOAL_HOURS * 3600 * CORES)
    print(
        f"Extrapolated: {NAVTRAIN_SCENES:,} scenes of navtrain on {CORES} cores in {hours:.2f} h "
        f"(goal {GOAL_HOURS:g} h, that is {needed:.2f} scenes a second and core: {rate / needed:.1f} times that)\n"
        f"Once a process: indexing the split {opening:.2f} s, first round (compiling, reading maps) "
        f"{rounds[0]['whole'] - whole:.1f} s more than the others"
    )


def _print_size(maker, stored: dict[str, float], reading: float) -> None:
    print(
        f"\nContainer: {stored['all']:,.0f} bytes a scene, {stored['maps']:,.0f} of them shared polygons; "
        f"reading a scene {1e3 * reading:.2f} ms"
    )
    official = _official_bytes(maker.tokens)
    if official:
        print(f"Official lzma pickle: {official:,.0f} bytes a scene; ours are {stored['all'] / official:.1%} of that")


def _official_bytes(tokens) -> float | None:
    """Mean size of the reference's files of these scenes, as the golden data say; None where there are none."""
    import numpy as np

    golden = Path(os.environ.get("RECOGDRIVE_GOLDEN", SHARED / "golden")) / "metric_cache"
    sizes = []
    for token in tokens:
        if (golden / f"{token}.npz").exists():
            with np.load(golden / f"{token}.npz") as arrays:
                sizes.append(int(arrays["reference_bytes"][0]))
    return statistics.mean(sizes) if sizes else None


if __name__ == "__main__":
    main()
