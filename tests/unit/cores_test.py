"""Tests of cores.py."""

import os

from recogdrive.cores import usable_cores


def test_the_cores_are_those_the_process_is_bound_to():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_where_a_system_does_not_tell_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cores() == {0, 1, 2}
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == {0}
