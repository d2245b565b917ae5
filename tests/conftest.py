"""Shared by every test: where the reference data is, a clean gin around each test, and programs compiled once."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gin
import hypothesis
import pytest

from recogdrive.platforms import leave_out_absent_tpu

# Property tests look for new examples on every run, but not where a failure should mean that the change is wrong.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    hypothesis.settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

OPTIMISED = (REPOSITORY / "tests" / "golden", REPOSITORY / "tests" / "acceptance")
"""Where it is the programs that users run that are measured: parity with the reference, experiments in full."""


def pytest_configure(config: pytest.Config) -> None:
    """Lets all workers, and the processes that tests start, share what they compile, as a user's runs may.

    The folder is new for every session, unless JAX_COMPILATION_CACHE_DIR names another. Workers inherit it. Tests wait
    for compilation far longer than for what it made, so programs are not optimised except in the folders of
    `OPTIMISED`, or where JAX_DISABLE_MOST_OPTIMIZATIONS=0 asks for it.
    """
    leave_out_absent_tpu()
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="recogdrive_compiled_")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder


def _present_or_absent(path: Path, what: str) -> Path:
    """Returns `path`; without it the test fails under CI and is skipped, with the reason, elsewhere."""
    if not path.exists():
        reason = f"{what} not found at {path}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The read-only reference folder beside the checkout."""
    return _present_or_absent(SHARED, "reference folder")


@pytest.fixture(scope="session")
def tpu_compiler() -> Path:
    """libtpu, of which there are builds for Linux on x86-64 alone."""
    spec = importlib.util.find_spec("libtpu")
    found = Path(spec.origin) if spec is not None and spec.origin else Path("libtpu")
    return _present_or_absent(found, "the TPU's compiler")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference outputs: `RECOGDRIVE_GOLDEN`, by default ../shared/golden."""
    return _present_or_absent(Path(os.environ.get("RECOGDRIVE_GOLDEN", SHARED / "golden")), "golden data")


@pytest.fixture(scope="session")
def golden_metric_cache(golden_dir) -> Path:
    """Reference scenes of navsim_mini: of `RECOGDRIVE_GOLDEN` where it has any, else of ../shared/golden."""
    own = golden_dir / "metric_cache"
    return own if own.exists() else _present_or_absent(SHARED / "golden" / "metric_cache", "golden metric cache")


@pytest.fixture(scope="session")
def golden_planner_constants(golden_dir) -> Path:
    """Learning rates, normalisation and schedule of the reference, found likewise."""
    own = golden_dir / "planner" / "constants.json"
    return own if own.exists() else _present_or_absent(SHARED / "golden" / "planner" / own.name, "planner constants")


@pytest.fixture(scope="session")
def navsim_mini() -> Path:
    """Two logs of real driving in NAVSIM's format (an OPENSCENE_DATA_ROOT)."""
    return _present_or_absent(SHARED / "data" / "navsim_mini", "navsim_mini")


@pytest.fixture(scope="module", autouse=True)
def optimised_where_it_counts(request):
    """In the folders of `OPTIMISED` programs are what users run, those of the processes that tests start too."""
    if not any(folder in request.path.parents for folder in OPTIMISED):
        yield
        return
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    variable = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    jax.config.update("jax_disable_most_optimizations", False)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = variable


@pytest.fixture(autouse=True)
def clean_gin():
    """Every test starts and ends without gin bindings."""
    gin.clear_config()
    yield
    gin.clear_config()


class SeveralProcesses:
    """Starts the processes of one run on this machine, each with virtual devices of its own."""

    def __init__(self):
        self._started = []

    def start(self, count, devices, folder, *flags, environment=()):
        """Processes of `recogdrive.main`; what process i says goes to `folder`/said.i."""
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1] & ~1  # The one above is used too.
        variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)} | dict(environment)
        variables["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-m", "recogdrive.main", f"--workdir={folder / 'run'}", *flags]
        started = []
        for number in range(count):
            own = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}", f"--process_id={number}"]
            with (folder / f"said.{number}").open("w") as file:
                started.append(
                    subprocess.Popen([*command, *(own if count > 1 else [])], stdout=file, stderr=file, env=variables)
                )
        self._started += started
        return started

    def finish(self, started, timeout_s=600):
        """Waits for the ends; exit codes."""
        deadline = time.monotonic() + timeout_s
        return [process.wait(max(1.0, deadline - time.monotonic())) for process in started]

    def close(self):
        """Nothing that a failed test started lives on."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def several_processes():
    several = SeveralProcesses()
    yield several
    several.close()


class TinyFineTuning:
    """Parts of a fine-tuning run on the town, of sizes that compile in seconds: tiles of 28 pixels are one vector."""

    def __init__(self):
        # Only tests that use it pay for these imports.
        from recogdrive.data.vlm.scene_conversations import training_texts
        from recogdrive.data.vlm.tokenizer import train_tokenizer

        self.tokenizer = train_tokenizer(training_texts(self.conversations()), 768)

    def open(self, weights):
        """As a source of tokenizers."""
        del weights
        return self.tokenizer

    def conversations(self, scenes=4, seed=1):
        """Two conversations a scene, of 57 to 148 tokens."""
        from recogdrive.data.synthetic.town import SyntheticTown
        from recogdrive.data.vlm.cameras import TownCamera
        from recogdrive.data.vlm.driving_prompt import DrivingPrompt
        from recogdrive.data.vlm.scene_conversations import SceneConversations

        town = SyntheticTown(num_scenes=scenes, seed=seed, name=f"town_{seed}")
        return SceneConversations(town, DrivingPrompt("town"), TownCamera(64, 36))

    def vlm(self, width=16, **settings):
        from recogdrive.models.vlm.config import LanguageConfig, VisionConfig, VlmConfig
        from recogdrive.models.vlm.internvl import InternVL

        config = VlmConfig(
            vision=VisionConfig(width=16, layers=2, heads=2, mlp_width=24, image_size=28),
            language=LanguageConfig(
                width=width, layers=2, heads=2, kv_heads=1, mlp_width=24, vocab_size=self.tokenizer.vocab_size
            ),
        )
        defaults = {"compute_dtype": "float32", "attention": "plain", "remat": "none", "loss_chunk": 32}
        return InternVL(config, img_context_id=self.tokenizer.img_context_id, **defaults | settings)

    def data(self, held_out=None, tokenizer=None, **settings):
        """Packed rows of 160 tokens."""
        from recogdrive.data.vlm.fine_tuning_data import FineTuningData
        from recogdrive.data.vlm.layouts import PackedRows
        from recogdrive.data.vlm.tiling import Tiling

        defaults = {"train": self.conversations, "layout": PackedRows(160, 3), "max_seq_length": 160, "num_threads": 1}
        return FineTuningData(
            tokenizer=tokenizer or self, tiling=Tiling(28, dynamic=False), held_out=held_out, **defaults | settings
        )


@pytest.fixture(scope="session")
def tiny_sft():
    return TinyFineTuning()
