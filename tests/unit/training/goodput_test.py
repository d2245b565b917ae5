import json

import pytest

from recogdrive.training import goodput
from recogdrive.training.goodput import Attempt, GoodputFile, overall, read_attempts, table
from recogdrive.training.loop import Trainer
from recogdrive.training.preemption import Preempted
from recogdrive.training.sharding import DataParallel
from recogdrive.training.time_account import COMPILE, EVALUATION, KINDS, STEPS, TimeAccount


def attempt(from_step=0, to_step=100, compiled_in=None, **seconds):
    given = dict.fromkeys(KINDS, 0.0) | seconds
    return Attempt(given, compiled_in or {}, "2026-11-26T08:00:00+00:00", from_step, to_step)


def test_steps_that_a_restart_lost_are_not_productive():
    killed = attempt(0, 100, steps=50.0, compile=10.0)
    rest = attempt(80, 200, steps=60.0, compile=5.0)
    total = overall([killed, rest])
    assert (total.attempts, total.wall, total.redone_steps, total.redone_seconds) == (2, 125.0, 20, 10.0)
    assert total.productive_seconds == 100.0


def test_a_run_prolonged_after_its_end_lost_nothing():
    total = overall([attempt(0, 100, steps=50.0), attempt(100, 150, steps=25.0)])
    assert (total.redone_steps, total.productive_seconds) == (0, 75.0)


def test_falling_back_behind_an_attempt_loses_no_more_than_all_of_it():
    total = overall([attempt(0, 100, steps=50.0), attempt(100, 110, steps=5.0), attempt(80, 200, steps=60.0)])
    assert (total.redone_steps, total.redone_seconds) == (30, 5.0)


def test_an_attempt_survives_the_way_to_disk(tmp_path):
    account = TimeAccount()
    with account.phase(STEPS):
        pass
    written = GoodputFile(tmp_path, account, 3).note(7)
    (read,) = read_attempts(tmp_path)
    assert (read.from_step, read.to_step, read.started) == (3, 7, written.started)
    assert read.seconds == pytest.approx(written.seconds, abs=1e-3)


def test_an_attempt_is_noted_anew_beside_those_before_it(tmp_path):
    for steps in ((0, 5), (4, 9)):
        file = GoodputFile(tmp_path, TimeAccount(), steps[0])
        file.note(steps[1] - 1)
        file.note(steps[1])
    assert [(a.from_step, a.to_step) for a in read_attempts(tmp_path)] == [(0, 5), (4, 9)]


def test_an_unreadable_file_begins_anew(tmp_path):
    (tmp_path / goodput.GOODPUT_FILE).write_text("[{")
    assert read_attempts(tmp_path) == []


def test_the_table_shows_every_kind_with_its_share_and_the_sum():
    text = table([attempt(0, 200, {STEPS: 6.0, EVALUATION: 4.0}, steps=50.0, compile=10.0, evaluation=40.0)])
    lines = text.splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert len(lines) == len(KINDS) + 1
    assert words[KINDS.index(COMPILE)] == "compile 10.0 s 10.0% steps 6.0 s, evaluation 4.0 s"
    assert words[KINDS.index(STEPS)] == "steps 50.0 s 50.0% 200 steps, 0.25 s each"
    assert words[-1] == "time of training 100.0 s 100.0%"
    assert len({line.index("%") for line in lines}) == 1


def test_the_table_of_a_restarted_run_sums_up_all_attempts():
    text = table([attempt(0, 100, steps=50.0), attempt(80, 100, steps=10.0, compile=40.0)])
    assert text.splitlines()[-1] == (
        "all 2 attempts: 50.0% of 100.0 s were steps that count; at least 20 steps were done again (10.0 s)"
    )


def run(linear, stream, workdir, steps=6, **options):
    trainer = Trainer(steps, sharding=DataParallel(1), log_every=2, save_every=4, **options)
    return trainer.fit(linear(), stream(), workdir, evaluate=lambda params, step: {"score": 1.0})


def test_training_accounts_for_all_of_its_time(linear, stream, tmp_path, monkeypatch):
    accounts = []
    monkeypatch.setattr("recogdrive.training.loop.TimeAccount", lambda: accounts.append(TimeAccount()) or accounts[0])
    run(linear, stream, tmp_path)
    (noted,) = read_attempts(tmp_path)
    assert (noted.from_step, noted.to_step) == (0, 6)
    assert all(noted.seconds[kind] >= 0 for kind in KINDS)
    assert noted.seconds[COMPILE] > 0 and noted.seconds[STEPS] > 0
    entry = json.loads((tmp_path / goodput.GOODPUT_FILE).read_text())[0]
    assert sum(entry["seconds"].values()) == pytest.approx(entry["wall_s"], abs=5e-3)
    assert entry["wall_s"] <= accounts[0].read().wall


def test_a_preempted_run_and_its_continuation_are_two_attempts(linear, stream, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("recogdrive.training.loop.PreemptionGuard.requested", lambda self, step: step == 3)
        with pytest.raises(Preempted):
            run(linear, stream, tmp_path)
    run(linear, stream, tmp_path)
    assert [(a.from_step, a.to_step) for a in read_attempts(tmp_path)] == [(0, 3), (3, 6)]


def test_a_run_that_fails_leaves_what_it_noted_and_the_next_one_knows_the_lost_steps(linear, stream, tmp_path):
    class Fails(stream):
        def __next__(self):
            if self.next_batch == 7:
                raise OSError("the disk is gone")
            return super().__next__()

    trainer = Trainer(8, sharding=DataParallel(1), log_every=1, save_every=2, prefetch=1)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(linear(), Fails(), tmp_path)
    trainer.fit(linear(), stream(), tmp_path)
    first, second = read_attempts(tmp_path)
    assert (first.to_step, second.from_step, overall([first, second]).redone_steps) == (7, 6, 1)


def test_a_finished_run_started_again_adds_no_attempt(linear, stream, tmp_path):
    run(linear, stream, tmp_path)
    run(linear, stream, tmp_path)
    assert len(read_attempts(tmp_path)) == 1
