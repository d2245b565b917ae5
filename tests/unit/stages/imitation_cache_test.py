"""Imitation and evaluation on cached hidden states: what is recorded, and what is refused."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from recogdrive.composition import Composition
from recogdrive.data.hidden_cache.container import HiddenCacheError
from recogdrive.data.hidden_cache.reader import HiddenStateCache
from recogdrive.experiment import ConfigurationError, find_experiment
from recogdrive.models.ego_status_mlp import EgoStatusMLP
from recogdrive.run_folder import RunFolder
from recogdrive.stages.evaluate import Evaluate
from recogdrive.stages.imitation import Imitation
from recogdrive.stages.open_loop import OpenLoop
from recogdrive.training.loop import Trainer
from recogdrive.training.optim import AdamW, Constant

_spec = importlib.util.spec_from_file_location("hidden_cache_work", Path(__file__).with_name("hidden_cache_work.py"))
work = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(work)


class ContextMLP(EgoStatusMLP):
    """Compiles in a second and insists on a context in bfloat16, which it adds to nothing."""

    context_width = work.WIDTH

    def loss(self, params, batch, key):
        assert batch["context"].dtype == jnp.bfloat16 and batch["context"].shape[1:] == (work.TOKENS, work.WIDTH)
        loss, metrics = super().loss(params, batch | {"context": batch["context"][:, :0, :0]}, key)
        return loss, metrics

    def plan(self, params, batch, keys):
        assert batch["context"].dtype == jnp.bfloat16
        return super().plan(params, batch | {"context": batch["context"][:, :0, :0]}, keys)


PLANNER = ContextMLP(hidden_dim=4)


def make_cache(path, **encoder):
    path.mkdir()
    work.stage(encoder=work.Encoder(**encoder)).run(work.Folder(path), path)
    return path


def open_folder(path):
    return RunFolder(path, Composition(find_experiment("debug_il"), "A = 1\n"), None)


def imitation(cache):
    trainer = Trainer(3, optimizer=AdamW(Constant(0.01), weight_decay=0.0, clip_norm=None), log_every=1)
    return Imitation(PLANNER, work.splits(), cache, trainer, OpenLoop(pictures=0), batch_size=2, num_threads=2)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache") / "run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cached):
    path = tmp_path_factory.mktemp("runs") / "il"
    figures = imitation(HiddenStateCache(cached, num_tokens=work.TOKENS, width=work.WIDTH)).run(open_folder(path), None)
    return path, figures


def test_a_planner_trains_on_the_cache_and_records_its_fingerprint(trained, cached):
    path, figures = trained
    assert any(name.endswith("/ade") for name in figures)
    context = json.loads((path / "run.json").read_text())["context"]
    assert context["fingerprint"] == HiddenStateCache(cached).fingerprint
    assert context["fields"]["weights"] == "abc"


def test_it_is_evaluated_on_the_same_context(trained, cached, tmp_path):
    evaluate = Evaluate(PLANNER, work.splits(), HiddenStateCache(cached), OpenLoop(pictures=0))
    figures = evaluate.run(open_folder(tmp_path / "eval"), trained[0])
    assert figures == {name: pytest.approx(value) for name, value in trained[1].items()}


def test_it_is_not_evaluated_on_another_context_unless_that_is_allowed(trained, tmp_path):
    other = HiddenStateCache(make_cache(tmp_path / "other", weights="xyz"))
    with pytest.raises(ConfigurationError, match="weights: 'xyz' instead of 'abc'"):
        Evaluate(PLANNER, work.splits(), other, OpenLoop()).run(open_folder(tmp_path / "a"), trained[0])
    allowing = Evaluate(PLANNER, work.splits(), other, OpenLoop(pictures=0), allow_other_context=True)
    assert allowing.run(open_folder(tmp_path / "b"), trained[0])


def test_a_run_can_be_described_without_the_cache(tmp_path, monkeypatch):
    cache = HiddenStateCache(tmp_path / "missing", num_tokens=work.TOKENS, width=work.WIDTH)
    seen = {}
    monkeypatch.setattr("recogdrive.stages.imitation.training_memory", lambda shapes: seen.update(shapes.batch) or {})
    assert imitation(cache).describe().parameters
    assert seen["context"].dtype == jnp.bfloat16 and seen["context"].shape == (2, work.TOKENS, work.WIDTH)


def test_a_scene_that_is_not_cached_stops_training_before_it_begins(cached, tmp_path):
    stage = imitation(HiddenStateCache(cached))
    source = stage._splits.open_train()
    stage._splits = dataclasses.make_dataclass("Splits", [])()
    stage._splits.open_train = lambda: work.town(9, 4)()
    stage._splits.open_evaluate = stage._splits.open_validate = lambda: {"val": source}
    stage._splits.describe = dict
    with pytest.raises(HiddenCacheError, match="4 of 4 scenes of town_9 are not in"):
        stage.run(open_folder(tmp_path / "run"), None)
