"""Measures the PDM scorer: trajectories per second, compile time and memory, for S scenes x G trajectories in one call.

    python benchmarks/pdm_score.py                     # all cores, then one core; real scenes of the golden set
    python benchmarks/pdm_score.py --dtype=float32
    python benchmarks/pdm_score.py --scaling           # and how time grows with agents, map, scenes and group
    python benchmarks/pdm_score.py --scenes=town       # the synthetic town, where no golden set is at hand

Golden scenes come from RECOGDRIVE_GOLDEN (default ../shared/golden). Scenes are prepared (map index, normaliser) before
the clock starts, as a training run does once a scene; preparing is timed apart. All sizes run in turn within every
round, so that whatever else the machine does meets them alike.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

SIZES = ((1, 1), (1, 16), (16, 8), (64, 8))
REFERENCE_PER_CORE = 37.0
"""Trajectories per second and core of the public scorer on these scenes, without its 29 ms to open a scene's cache."""


def main() -> None:
    """Prints the tables asked for on the command line."""
    arguments = _parse()
    if arguments.cores:
        _measure(arguments)
        return
    cores = len(os.sched_getaffinity(0))
    for count in dict.fromkeys((cores, 1)) if arguments.platform == "cpu" else (cores,):
        # JAX sizes its thread pool when it starts, so each number of cores needs a process of its own.
        subprocess.run([sys.executable, __file__, *sys.argv[1:], f"--cores={count}"], check=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--scenes", choices=["golden", "town"], default="golden")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--platform", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--cores", type=int, default=0, help="measure in this process, on so many cores")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> None:
    """Everything that is measured on one number of cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    os.environ.setdefault("JAX_PLATFORMS", {"cpu": "cpu", "gpu": "cuda"}[arguments.platform])
    import jax

    scenes, trajectories = _town() if arguments.scenes == "town" else _golden()
    print(
        f"\n{arguments.dtype} on {arguments.cores} core{'s' * (arguments.cores > 1)}, {jax.devices()[0].device_kind}, "
        f"jax {jax.__version__}, {len(scenes)} {arguments.scenes} scenes\n"
    )
    programs = [_Program(arguments.dtype, *_draw(scenes, trajectories, *size)) for size in SIZES]
    seconds = _in_turn(programs, arguments.rounds)
    print(
        f"{'S x G':>8} {'compile s':>10} {'ms a call':>10} {'trajectories/s':>15} {'per core':>9} {'x reference':>12}"
    )
    for (count, group), program, times in zip(SIZES, programs, seconds, strict=True):
        rate = count * group / statistics.median(times)
        per_core = rate / arguments.cores
        print(
            f"{f'{count} x {group}':>8} {program.compile_s:10.1f} {1e3 * statistics.median(times):10.2f} {rate:15,.0f} "
            f"{per_core:9,.0f} {per_core / REFERENCE_PER_CORE:12.1f}"
        )
    largest = programs[-1]
    print(
        f"\nx reference: per core, to {REFERENCE_PER_CORE:g}/s of the public scorer. One call at a time (1 x 1) to "
        f"{SIZES[-1][0]} x {SIZES[-1][1]}: {_ratio(seconds, SIZES):.1f} times faster a trajectory.\n"
        f"Preparing a scene: map index {largest.index_ms:.1f} ms, rest {largest.normaliser_ms:.1f} ms.\n"
        f"Memory of {SIZES[-1][0]} x {SIZES[-1][1]}: scenes {largest.batch_bytes / 2**20:.0f} MiB, temporary "
        f"{largest.temporary_bytes / 2**20:.0f} MiB; peak of the process {_peak_gib():.2f} GiB."
    )
    if arguments.scaling:
        _scaling(arguments, scenes, trajectories)


class _Program:
    """The scorer compiled for one set of scenes and trajectories."""

    def __init__(self, dtype, scenes, trajectories):
        import jax
        import jax.numpy as jnp

        from recogdrive.pdm.map_index import build_map_index
        from recogdrive.pdm.scorer import PdmScorer, score_trajectories

        self.scorer = PdmScorer(dtype=dtype)
        jax.block_until_ready(self.scorer.prepare(scenes))
        start = time.perf_counter()
        for scene in scenes:
            build_map_index(scene)
        self.index_ms = 1e3 * (time.perf_counter() - start) / len(scenes)
        start = time.perf_counter()
        self.batch = jax.block_until_ready(self.scorer.prepare(scenes))
        self.normaliser_ms = 1e3 * (time.perf_counter() - start) / len(scenes) - self.index_ms
        self.batch_bytes = self.batch.num_bytes
        self._x64 = dtype == "float64"
        with jax.enable_x64(self._x64):
            self.trajectories = jnp.asarray(trajectories, dtype)
            start = time.perf_counter()
            self._compiled = jax.jit(score_trajectories).lower(self.batch, self.trajectories).compile()
            self.compile_s = time.perf_counter() - start
        memory = self._compiled.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes if memory else 0
        self.run()

    def run(self) -> float:
        """Seconds of one call, whose results are on the device."""
        import jax

        with jax.enable_x64(self._x64):
            start = time.perf_counter()
            jax.block_until_ready(self._compiled(self.batch, self.trajectories))
            return time.perf_counter() - start


def _in_turn(programs, rounds):
    """Seconds of every program in every round; short calls are repeated within a round."""
    repeats = [max(1, int(0.1 / max(program.run(), 1e-6))) for program in programs]
    seconds = [[] for _ in programs]
    for _ in range(rounds):
        for i, program in enumerate(programs):
            seconds[i].append(sum(program.run() for _ in range(repeats[i])) / repeats[i])
    return seconds


def _ratio(seconds, sizes) -> float:
    """Time of a trajectory in the first size over that in the last, median over rounds."""
    first, last = sizes[0][0] * sizes[0][1], sizes[-1][0] * sizes[-1][1]
    return statistics.median((a / first) / (b / last) for a, b in zip(seconds[0], seconds[-1], strict=True))


def _scaling(arguments, scenes, trajectories) -> None:
    """How time grows with one thing at a time, from 16 scenes x 8 trajectories."""
    base, planned = _draw(scenes, trajectories, 16, 8)
    cases = [("scenes x group", f"{s} x {g}", *_draw(scenes, trajectories, s, g)) for s, g in _GRID]
    cases += [("agents", str(count), [_with_agents(s, count) for s in base], planned) for count in (32, 128, 512, 1024)]
    cases += [("edges x", str(parts), [_with_finer_edges(s, parts) for s in base], planned) for parts in (1, 2, 4, 8)]
    cases += [("polygons x", str(n), [_with_copied_polygons(s, n) for s in base], planned) for n in (1, 2, 4)]
    programs = [_Program(arguments.dtype, case[2], case[3]) for case in cases]
    seconds = _in_turn(programs, max(3, arguments.rounds // 2))
    print(f"\n{'varied':>15} {'to':>8} {'us a trajectory':>16} {'index ms a scene':>17} {'MiB a scene':>12}")
    for (what, value, chosen, group), program, times in zip(cases, programs, seconds, strict=True):
        count = len(chosen) * group.shape[1]
        print(
            f"{what:>15} {value:>8} {1e6 * statistics.median(times) / count:16.1f} {program.index_ms:17.1f} "
            f"{program.batch_bytes / len(chosen) / 2**20:12.2f}"
        )


_GRID = ((1, 1), (1, 8), (1, 64), (16, 1), (16, 8), (64, 1), (64, 8), (64, 64))


def _with_agents(scene, count):
    """The scene with its first agents repeated, or fewer of them."""
    import numpy as np

    chosen = np.arange(count) % scene.agent_types.shape[0]
    return replace(
        scene,
        agent_poses=scene.agent_poses[:, chosen],
        agent_valid=scene.agent_valid[:, chosen],
        agent_sizes=scene.agent_sizes[chosen],
        agent_speeds=scene.agent_speeds[chosen],
        agent_types=scene.agent_types[chosen],
    )


def _with_finer_edges(scene, parts):
    """The same outlines with every edge cut into parts."""
    import numpy as np

    rings = [scene.vertices[a:b] for a, b in zip(scene.ring_offsets[:-1], scene.ring_offsets[1:], strict=True)]
    steps = np.arange(parts)[None, :, None] / parts
    finer = [(r[:, None] * (1 - steps) + np.roll(r, -1, 0)[:, None] * steps).reshape(-1, 2) for r in rings]
    return replace(
        scene,
        vertices=np.concatenate(finer).astype(scene.vertices.dtype),
        ring_offsets=(scene.ring_offsets * parts).astype(scene.ring_offsets.dtype),
    )


def _with_copied_polygons(scene, copies):
    """Every polygon several times in the same place: the worst case for a grid."""
    import numpy as np

    vertices, rings = len(scene.vertices), len(scene.ring_offsets) - 1
    shift = np.arange(copies)[:, None]
    return replace(
        scene,
        vertices=np.tile(scene.vertices, (copies, 1)),
        ring_offsets=np.append((scene.ring_offsets[:-1] + shift * vertices).ravel(), copies * vertices).astype(
            np.int32
        ),
        polygon_offsets=np.append((scene.polygon_offsets[:-1] + shift * rings).ravel(), copies * rings).astype(
            np.int32
        ),
        polygon_layers=np.tile(scene.polygon_layers, copies),
        polygon_on_route=np.tile(scene.polygon_on_route, copies),
    )


def _golden():
    """Real scenes of the golden set with their candidates."""
    from recogdrive.pdm.reference_scenes import ReferenceScenes

    folder = (
        Path(os.environ.get("RECOGDRIVE_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden")) / "pdm"
    )
    if not folder.exists():
        sys.exit(f"There are no golden scenes at {folder}; set RECOGDRIVE_GOLDEN, or pass --scenes=town.")
    source = ReferenceScenes(folder)
    real = [i for i in range(len(source)) if not source.tokens[i].startswith("synthetic")]
    return [source[i] for i in real], [source.candidates(i) for i in real]


def _town():
    """Scenes of the synthetic town with the driven trajectory, slowed down and sped up."""
    import numpy as np

    from recogdrive.data.synthetic.town import SyntheticTown
    from recogdrive.pdm.sources import TownPdmScenes

    town, convert = SyntheticTown(num_scenes=64, seed=0), TownPdmScenes()
    scenes = [convert(town[i]) for i in range(len(town))]
    factors = np.linspace(0.5, 1.5, 16)[:, None, None] * np.array([1.0, 1.0, 0.0]) + np.array([0.0, 0.0, 1.0])
    return scenes, [scene.human_poses[None] * factors for scene in scenes]


def _draw(scenes, trajectories, count, group):
    """`count` scenes in turn with `group` candidates drawn from each one's own."""
    import numpy as np

    rng = np.random.default_rng(0)
    chosen = [i % len(scenes) for i in range(count)]
    picked = [trajectories[i][rng.integers(len(trajectories[i]), size=group)] for i in chosen]
    return [scenes[i] for i in chosen], np.stack(picked)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
