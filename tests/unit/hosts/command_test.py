"""What of a command line all processes have in common."""

import json
import os

from recogdrive.hosts import command


def test_flags_that_number_a_process_are_no_part_of_what_all_were_started_with():
    own = ["--process_id=1", "-num_processes=2", "--coordinator_address", "h:1"]
    assert command._without_own([*own[:2], "--experiment=a", *own[2:], "--workdir", "b"]) == [
        "--experiment=a",
        "--workdir",
        "b",
    ]


def test_a_reason_goes_to_the_supervisor_where_there_is_one(monkeypatch):
    command.explain("nobody asks")
    reading, writing = os.pipe()
    monkeypatch.setenv("RECOGDRIVE_REASON_FD", str(writing))
    command.explain("log 17\nis damaged")
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert json.loads(pipe.read()) == "log 17\nis damaged"


def test_one_process_is_not_supervised():
    assert command.supervised({"num_processes": 1}, print, []) is None
