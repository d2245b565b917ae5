"""What the launcher reads from a run folder."""

import json

from recogdrive.launch.run_record import ATTEMPT_MARK, is_done, last_words, progress, read_metrics


def kept(run, text, status="finished"):
    run.workdir.mkdir(exist_ok=True)
    (run.workdir / "config.gin").write_text(text)
    (run.workdir / "run.json").write_text(json.dumps({"attempts": [{"status": "failed"}, {"status": status}]}))
    return run


def test_a_run_is_done_if_its_last_attempt_finished_with_the_same_statements(fake):
    run = fake("a")
    assert not is_done(run)
    text = run.configuration()
    assert is_done(kept(run, text.replace("# --", "# elsewhere --")))
    assert not is_done(kept(run, text + "VAL_SCENES=3\n"))
    assert not is_done(kept(run, text, "preempted"))
    assert not is_done(kept(run, text, "failed: ValueError: no"))


def test_a_record_that_cannot_be_read_is_not_done(fake):
    run = kept(fake("a"), fake("a").configuration())
    (run.workdir / "run.json").write_text('{"attempts": [')
    assert not is_done(run)


def test_progress_is_the_last_point_of_the_curve_else_the_last_line_of_the_log(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("loading\n 10%|#\r 20%|##\n\n")
    assert progress(tmp_path, log) == "20%|##"
    curve = tmp_path / "metrics.jsonl"
    curve.write_text('{"step": 5, "loss": 0.25}\n{"step": 10, "eval/pd')
    assert progress(tmp_path, log) == "step 5  loss 0.25"
    assert read_metrics(tmp_path) == [{"step": 5, "loss": 0.25}]


def test_last_words_are_the_error_of_the_last_attempt(tmp_path):
    log = tmp_path / "a.log"
    log.write_text(f"error: old\n{ATTEMPT_MARK}2026 python\nwarning\nerror: the disk is full\n(traceback in x)\n")
    assert last_words(log) == "error: the disk is full"
    log.write_text(f"error: old\n{ATTEMPT_MARK}2026 python\nKeyError: 'x'\n(traceback in y)\n")
    assert last_words(log) == "KeyError: 'x'"
    log.write_text("reverse_share 0.6 is above 0.5\nThe step is saved; to go on all the same, change the threshold.\n")
    assert last_words(log) == "reverse_share 0.6 is above 0.5"
    assert last_words(tmp_path / "none.log") == ""
