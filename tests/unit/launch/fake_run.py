"""Stands for `recogdrive.main` in tests of the launcher: keeps the same files, trains nothing.

What it does is the last `Fake.behaviour=...` among its bindings: finish, fail, wait (until SIGTERM, then
saves), deaf (to SIGTERM), meet (ends once two runs are there), score (a curve and a summary, best at
LEARNING_RATE=0.003).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:] if "gin_bindings" not in argument)
bindings = dict(a.removeprefix("--gin_bindings=").split("=", 1) for a in sys.argv[1:] if "gin_bindings" in a)
behaviour = bindings.get("Fake.behaviour", '"finish"').strip('"')
workdir = Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
record_path = workdir / "run.json"
record = json.loads(record_path.read_text()) if record_path.exists() else {"attempts": []}
shown = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS", "OWN")
environment = {name: os.environ.get(name) for name in shown}
record["attempts"].append({"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "status": "running", "env": environment})


def keep() -> None:
    """Writes the record at once, as the product does: whoever watches never reads half of it."""
    unfinished = record_path.with_name("run.json.tmp")
    unfinished.write_text(json.dumps(record))
    unfinished.replace(record_path)


def end(status: str, code: int) -> None:
    """Notes how it went and leaves."""
    record["attempts"][-1] |= {"status": status, "finished": time.strftime("%Y-%m-%dT%H:%M:%S"), "at": time.time()}
    keep()
    sys.exit(code)


if behaviour == "wait":
    signal.signal(signal.SIGTERM, lambda *_: end("preempted", 75))
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
# As the product does, before anything else: the configuration that this attempt runs with.
from recogdrive.composition import composed_text  # noqa: E402
from recogdrive.experiment import find_experiment  # noqa: E402

given = [a.removeprefix("--gin_bindings=") for a in sys.argv[1:] if "gin_bindings" in a]
(workdir / "config.gin").write_text(composed_text(find_experiment(flags["experiment"]), [], given))
record["attempts"][-1]["began_at"] = time.time()
keep()
if behaviour == "fail":
    sys.stderr.write("error: it is made to fail\n(traceback in error.txt)\n")
    end("failed", 1)
if behaviour in ("wait", "deaf", "meet"):
    (workdir / "starting").write_text(str(os.getpid()))
    (workdir / "starting").rename(workdir / "ready")
    patience = time.monotonic() + 60
    while behaviour != "meet" or len(list(workdir.parent.glob("*/ready"))) < 2:
        time.sleep(0.02)
        if time.monotonic() > patience:
            end("failed: alone for a minute", 1)
if behaviour == "score":
    rate = float(bindings["LEARNING_RATE"])
    score = 1 - (rate - 0.003) ** 2 * 1e4
    with (workdir / "metrics.jsonl").open("w") as curve:
        for step in (1, 2):
            curve.write(json.dumps({"step": step, "eval/pdms": score * step / 2, "loss": rate}) + "\n")
    (workdir / "summary.json").write_text(json.dumps({"planner": {"pdms": score}}))
end("finished", 0)
