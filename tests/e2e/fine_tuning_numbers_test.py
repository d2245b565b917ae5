"""A long bfloat16 run over every kind of row stays finite: no labels, one label, padding alone, no tiles."""

import itertools
import json

import jax
import numpy as np
import pytest

from recogdrive.training.checkpoint import load_params
from recogdrive.training.fine_tuning import FineTuning
from recogdrive.training.loop import Trainer
from recogdrive.training.optim import AdamW, StepCosine

pytestmark = pytest.mark.heavy

STEPS = 300


class Hostile:
    """Batches of town conversations in a round, of whose rows some are stripped of labels, tiles or everything."""

    def __init__(self, batches):
        self.batches = batches
        self.batch_size = self.samples_per_epoch = len(batches[0]["num_tiles"])
        self.next_batch = 0

    def __iter__(self):
        return self

    def __next__(self):
        batch = {name: value.copy() for name, value in self.batches[self.next_batch % len(self.batches)].items()}
        kinds = [self.keep, self.without_labels, self.with_one_label, self.padding, self.without_tiles]
        choice = next(itertools.islice(itertools.product(kinds, repeat=self.batch_size), self.next_batch % 25, None))
        for row, change in enumerate(choice):
            change(batch, row)
        self.next_batch += 1
        return batch

    def get_state(self):
        return {"next_batch": self.next_batch}

    def set_state(self, state):
        self.next_batch = state["next_batch"]

    def keep(self, batch, row):
        pass

    def without_labels(self, batch, row):
        batch["labels"][row] = -100
        batch["loss_weight"][row] = 0

    def with_one_label(self, batch, row):
        last = np.flatnonzero(batch["labels"][row] >= 0)[-1]
        self.without_labels(batch, row)
        batch["labels"][row, last], batch["loss_weight"][row, last] = batch["input_ids"][row, last], 1

    def padding(self, batch, row):
        self.without_labels(batch, row)
        batch["segment_ids"][row], batch["position_ids"][row], batch["num_tiles"][row] = 0, 1, 0
        batch["tiles"][row] = 0

    def without_tiles(self, batch, row):
        batch["num_tiles"][row] = 0
        batch["tiles"][row] = 0


@pytest.fixture(scope="module")
def run(tiny_sft, tmp_path_factory):
    """Run folder and stream of the whole run."""
    folder = tmp_path_factory.mktemp("hostile")
    data = tiny_sft.data()
    samples, survey = data.samples(data.open_train(), tiny_sft.tokenizer, 1, 0, folder / "survey")
    stream = data.stream(samples, survey, batch_size=2, seed=0, process_index=0, process_count=1)
    batches = [next(stream) for _ in range(6)]
    stream.close()
    vlm = tiny_sft.vlm(compute_dtype="bfloat16", attention="fused", remat="full", drop_path_rate=0.2)
    optimizer = AdamW(StepCosine(learning_rate=3e-3), beta2=0.999, weight_decay=0.05)
    trainer = Trainer(STEPS, optimizer=optimizer, log_every=1, save_every=STEPS, keep_last=1)
    hostile = Hostile(batches)
    trainer.fit(FineTuning(vlm), hostile, folder)
    return folder, hostile


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_finite_and_the_loss_falls(run):
    steps = lines(run[0])
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    figures = np.array([[line["loss"], line["grad_norm"]] for line in steps])
    assert np.isfinite(figures).all()
    whole = [line["loss"] for line in steps[::25]]  # Both rows as they are.
    assert whole[-1] < 0.6 * whole[0]


def test_all_weights_are_finite_and_have_moved(run, tiny_sft):
    params = load_params(run[0], which="latest")
    for name, value in params.items():
        assert np.isfinite(np.asarray(value)).all(), name
    start = jax.jit(tiny_sft.vlm().init)(jax.random.split(jax.random.key(0))[0])
    assert all((np.asarray(params[name]) != np.asarray(start[name])).any() for name in params)


def test_a_batch_without_a_label_has_no_loss_and_no_gradient(run):
    folder, stream = run
    unlabelled = []
    for number in range(25):
        stream.next_batch = number
        unlabelled.append(not next(stream)["loss_weight"].any())
    assert sum(unlabelled) == 4
    steps = lines(folder)
    for number in np.flatnonzero(unlabelled):
        assert (steps[number]["loss"], steps[number]["grad_norm"], steps[number]["supervised_tokens"]) == (0, 0, 0)
