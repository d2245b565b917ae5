"""What several processes do together is nothing for one; with others it goes by the coordinator's store."""

import threading

import jax
import numpy as np
import pytest

from recogdrive.hosts import member


class Store:
    """The coordinator's, for threads that stand for processes."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            assert key not in self._values
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: not there")
            return self._values[key]


@pytest.fixture
def both(monkeypatch):
    """Function: work -> what it returns in two processes, which threads stand for."""
    own = threading.local()
    store = Store()
    monkeypatch.setattr(member, "is_several", lambda: True)
    monkeypatch.setattr(member, "_client", lambda: store)
    monkeypatch.setattr(member, "_next_name", lambda: f"name/{own.names.pop(0)}")
    monkeypatch.setattr(jax, "process_index", lambda: own.number)
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def run(work):
        found = {}

        def of_process(number):
            own.number, own.names = number, list(range(100))
            try:
                found[number] = work(number)
            except Exception as error:
                found[number] = error

        threads = [threading.Thread(target=of_process, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return found

    return run


def test_one_process_does_everything_itself(tmp_path):
    assert member.is_lead() and not member.is_several()
    assert member.on_lead(lambda: {"anything": object}) == {"anything": object}
    member.wait_for_all()
    member.require_shared(tmp_path)
    with member.lead_first():
        pass
    weights = {"a": jax.numpy.ones(3)}
    assert member.local_weights(weights)["a"] is weights["a"]
    np.testing.assert_array_equal(member.host_weights(weights)["a"], np.ones(3))


def test_what_process_0_finds_all_get_to_the_bit(both):
    worked = []

    figures = {"fde": 0.1 + 0.2, "bad": float("inf")}
    assert both(lambda number: member.on_lead(lambda: worked.append(number) or figures)) == {0: figures, 1: figures}
    assert worked == [0]


def test_a_value_longer_than_a_message_comes_whole(both):
    text = "x" * (5 << 20)
    assert both(lambda number: member.on_lead(lambda: text) == text) == {0: True, 1: True}


def test_process_0_goes_first(both):
    order = []

    def work(number):
        with member.lead_first():
            order.append(number)

    both(work)
    assert order == [0, 1]


def test_a_folder_that_only_process_0_sees_is_refused(both, tmp_path, monkeypatch):
    monkeypatch.setattr(member, "_FOLDER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(member, "_WAIT_S", 1)
    here = {0: tmp_path / "a", 1: tmp_path / "b"}
    for folder in here.values():
        folder.mkdir()
    monkeypatch.setattr(member, "wait_for_all", lambda: None)
    found = both(lambda number: member.require_shared(here[number]))
    assert found[0] is None
    assert "storage that all hosts share" in str(found[1])


def test_a_folder_that_all_see_is_left_as_it_was(both, tmp_path):
    assert both(lambda number: member.require_shared(tmp_path)) == {0: None, 1: None}
    assert list(tmp_path.iterdir()) == []
