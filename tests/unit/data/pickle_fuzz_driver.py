"""Reads damaged files in a process of its own, one seed after the other; run by pickle_fuzz_test.py.

Usage: pickle_fuzz_driver.py KIND FIRST LAST FOLDER [LOG ...]. Writes the seed at hand to FOLDER/seed, and a JSON object
with counts and failures to FOLDER/result.json. Memory is limited, a case that takes longer than `SECONDS` fails, and
whatever could run foreign code is seen by an audit hook.
"""

import importlib.util
import json
import lzma
import pickle
import resource
import signal
import sys
import traceback
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
MEMORY = 2**32
SECONDS = 10
LONGEST_MESSAGE = 4_000
_WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)


def load(name, path):
    """A module of this folder or another, by its path."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutations = load("pickle_mutations", HERE / "pickle_mutations.py")
pickles = load("official_pickles", HERE.parent / "pdm" / "official_pickles.py")
frames = load("data_conftest", HERE / "conftest.py")


class Alarms:
    """Notes what happens while `reading`; an audit hook cannot be taken away again."""

    def __init__(self):
        self.reading = False
        self.seen = []
        sys.addaudithook(self._note)

    def _note(self, event, args):
        if self.reading and (event in _WATCHED or (event == "open" and isinstance(args[1], str) and "w" in args[1])):
            self.seen.append(f"{event}{args!r}"[:200])


class Logs:
    """Damaged logs, read as the scene source does.

    Args:
      folder: Where to write them.
      originals: Logs to damage beside a made one.
    """

    def __init__(self, folder, originals):
        self.path, self.canary = folder / "2021.06.09_veh-12.pkl", folder / "canary"
        made = [frames.frame("log-a000", index) for index in range(5)]
        made[0]["traffic_lights"], made[1]["anns"]["gt_velocity_3d"] = [], np.zeros((1, 3), np.float32)
        self.bases = [pickle.dumps(made, 4), *(path.read_bytes() for path in originals)]
        self.cut = [mutations.Instructions(base) for base in self.bases]

    def write(self, random):
        # Logs of real driving are a hundred times as long as the made one.
        base = int(random.integers(len(self.bases))) if random.random() < 0.05 else 0
        kind = random.integers(3)
        if kind == 0:
            data = mutations.damage_bytes(random, self.bases[base])
        elif kind == 1:
            data = self.cut[base].damage(random, self.canary)
        else:
            data = mutations.dumped(
                mutations.damage_value(random, pickle.loads(self.bases[base]), self.canary), int(random.integers(2, 5))
            )
        if data is not None:
            self.path.write_bytes(data)
        return data is not None

    def read(self):
        from recogdrive.data.navsim_log import parse_windows, read_log, scene_of
        from recogdrive.data.types import MapPatch

        try:
            raw = read_log(self.path)
        except ValueError as error:
            return named(error, str(self.path))
        try:
            parsed = parse_windows(raw, self.path.stem, [0], len(raw), "refuse")
        except ValueError as error:
            return named(error, self.path.stem)
        for frame in parsed.values():
            assert np.isfinite(frame.pose).all() and frame.pose.shape == (3,) and 0 <= frame.timestamp_us < 2**63
            assert frame.velocity is None or np.isfinite([*frame.velocity, *frame.acceleration]).all()
            assert all(type(text) is str for text in (frame.token, frame.map_name, *frame.roadblock_ids))
            if frame.detections is not None:
                count = len(frame.detections.track_tokens)
                assert frame.detections.boxes.shape == (count, 7) and frame.detections.velocity.shape == (count, 2)
                assert np.isfinite(frame.detections.boxes).all() and np.isfinite(frame.detections.velocity).all()
        if len(parsed) >= 4:
            scene_of([parsed[i] for i in range(len(parsed))], "log", MapPatch(50.0, ()), Path("/data"), {})
        return "read"


class Caches:
    """Damaged official metric caches, made into scenes."""

    def __init__(self, folder, originals):
        self.root, self.canary = folder / "cache", folder / "canary"
        with pickles.official_modules() as classes:
            cache = pickles.cache_of(classes, pickles.small_arrays())
            self.base = pickle.dumps(cache, 5)
        self.cut = mutations.Instructions(self.base)
        self.packed = lzma.compress(self.base, preset=0)

    def write(self, random):
        kind = random.integers(6)
        if kind == 0:
            content = mutations.damage_bytes(random, self.packed)
        else:
            if kind == 1:
                data = mutations.damage_bytes(random, self.base)
            elif kind == 2:
                data = self.cut.damage(random, self.canary)
            else:
                with pickles.official_modules():
                    damaged = mutations.damage_value(random, pickle.loads(self.base), self.canary)
                    data = mutations.dumped(damaged, 5)
            if data is None:
                return False
            content = lzma.compress(data, preset=0)
        self.path = pickles.write_cache(self.root, content)
        return True

    def read(self):
        from recogdrive.pdm.making import FailedScene
        from recogdrive.pdm.official_cache import OfficialMetricCache
        from recogdrive.pdm.validation import validate

        (result,) = OfficialMetricCache(self.root).make([0])
        if isinstance(result, FailedScene):
            return named(result.reason, str(self.path))
        validate(result.scene)
        assert np.isfinite(result.map_vertices).all() and len(result.map_vertices) == len(result.scene.vertices)
        return "read"


class Lists:
    """Damaged lists of official metric caches."""

    def __init__(self, folder, originals):
        self.root, self.canary = folder / "listed", folder / "canary"
        lines = []
        with pickles.official_modules() as classes:
            cache = pickles.cache_of(classes, pickles.small_arrays())
            for number in range(4):
                path = pickles.write_cache(self.root, cache, f"{number:016x}", f"2021.06.09_veh-{number}")
                lines.append("/cpfs01/user/cache/" + str(path.relative_to(self.root)))
        self.lines = lines

    def write(self, random):
        self.outside = self.root.parent / "metric_cache.pkl"
        lines = [*self.lines, *mutations.pick(random, ([], self.lines[:1], ["", ""]))]
        for _ in range(int(random.integers(0, 3))):
            place = int(random.integers(len(lines)))
            parts = lines[place].split("/")
            parts[int(random.integers(len(parts)))] = mutations.pick(
                random,
                (
                    "..",
                    ".",
                    "",
                    "x" * 5000,
                    "a\x00b",
                    "ü",
                    "C:",
                    "\\..\\..",
                    '"',
                    ",",
                    "a,b",
                    "\r",
                    "~",
                    " ",
                    "\x1b[31m",
                ),
            )
            lines[place] = mutations.pick(random, ("/", "\\")).join(parts)
        header = mutations.pick(random, ("file_name", "file_name", "file_name", "file_name", "file", "", "file_name,x"))
        data = mutations.pick(random, ("\n", "\r\n")).join([header, *lines, ""]).encode()
        if random.integers(2):
            data = mutations.damage_bytes(random, data)
        self.path = self.root / "metadata" / "navtest_metadata_node_0.csv"
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_bytes(data)
        return True

    def read(self):
        from recogdrive.pdm.making import FailedScene
        from recogdrive.pdm.official_cache import OfficialMetricCache

        try:
            maker = OfficialMetricCache(self.root)
            positions = range(len(maker.tokens))
        except (ValueError, FileNotFoundError) as error:
            return named(error, str(self.root))
        for result in maker.make(positions):
            if isinstance(result, FailedScene):
                named(result.reason, str(self.root))
        return "read"


class Submissions:
    """Damaged submissions to the leaderboard."""

    def __init__(self, folder, originals):
        from recogdrive.evaluation.submission import Team, write_submission

        self.path, self.canary = folder / "submission.pkl", folder / "canary"
        team = Team(name="team", authors="a", email="a@b.c", institution="i", country="c")
        plans = {f"{i:016x}": np.full((8, 3), i, np.float32) for i in range(3)}
        write_submission(self.path, [plans], team, tokens=list(plans))
        self.base = self.path.read_bytes()
        self.cut = mutations.Instructions(self.base)

    def write(self, random):
        kind = random.integers(2)
        damage = mutations.damage_bytes(random, self.base) if kind else self.cut.damage(random, self.canary)
        self.path.write_bytes(damage)
        return True

    def read(self):
        from recogdrive.evaluation.submission import read_submission

        try:
            read_submission(self.path)
        except ValueError as error:
            return named(error, str(self.path))
        return "read"


def named(error, name):
    """Checks that a message names the file and is of readable length."""
    message = str(error)
    assert name in message, f"{name} is not named: {message[:500]}"
    assert len(message) < LONGEST_MESSAGE, f"a message of {len(message)} characters: {message[:500]}"
    return "refused"


def overdue(number, frame):
    """The handler of the clock."""
    raise TimeoutError(f"longer than {SECONDS} s")


def peak_bytes():
    """Largest memory of this program; what `getrusage` tells includes that of the process it was started from."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main(kind, first, last, folder, *originals):
    """Runs the seeds first ... last - 1."""
    folder = Path(folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, overdue)
    source = {"logs": Logs, "caches": Caches, "lists": Lists, "submissions": Submissions}[kind](
        folder, [Path(path) for path in originals]
    )
    alarms = Alarms()
    counts, failures = {"read": 0, "refused": 0, "unwritable": 0}, []
    for seed in range(int(first), int(last)):
        (folder / "seed").write_text(str(seed))
        if not source.write(np.random.default_rng(seed)):
            counts["unwritable"] += 1
            continue
        signal.alarm(SECONDS)
        alarms.reading = True
        try:
            outcome = source.read()
            counts[outcome] += 1
        except BaseException:
            failures.append({"seed": seed, "what": traceback.format_exc()[-3000:]})
        finally:
            alarms.reading = False
            signal.alarm(0)
        if alarms.seen or source.canary.exists():
            failures.append({"seed": seed, "what": f"something ran: {alarms.seen}, {source.canary.exists()}"})
            alarms.seen = []
    (folder / "result.json").write_text(
        json.dumps({"counts": counts, "failures": failures, "peak_bytes": peak_bytes()})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
