"""Hostile pickles run nothing; honest ones load as they were written."""

import builtins
import os
import pickle
import struct

import numpy as np
import pytest

from recogdrive.data.pickle_names import PLAIN_NAMES
from recogdrive.data.safe_pickle import CorruptPickleError, DataPickleError, ForbiddenPickleError, load_log_pickle

RECONSTRUCT = np.empty(0).__reduce__()[0]


class Call:
    """Pickles as the instruction to call `function(*args)`."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def write(tmp_path, content, protocol=4):
    path = tmp_path / "2021.06.09_veh-12.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def global_(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def vars_of(name):
    return {slot: getattr(name, slot, None) for kind in type(name).__mro__ for slot in getattr(kind, "__slots__", ())}


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_a_log_holds_loads_as_the_standard_unpickler_would(tmp_path, protocol):
    content = {
        "translation": np.array([585178.87, 4477471.51, 13.1]),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f4"),
        "names": np.array(["vehicle", "czone_sign"]),
        "bytes": np.array([b"ab", b"c"]),
        "flags": np.array([True, False]),
        "no_boxes": np.zeros((0, 7)),
        "number": np.float32(1.5),
        "blob": b"\x00\xff",
        "empty": b"",
    }
    loaded = load_log_pickle(write(tmp_path, content, protocol))
    expected = pickle.loads(pickle.dumps(content, protocol))
    for key, value in expected.items():
        assert type(loaded[key]) is type(value), key
        np.testing.assert_array_equal(loaded[key], value, err_msg=key)
        assert np.asarray(loaded[key]).dtype == np.asarray(value).dtype, key
    assert loaded["fortran"].flags.f_contiguous


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_containers_keep_their_types_and_shared_references(tmp_path, protocol):
    shared = np.ones(2)
    frame = {"lights": [(27007, True)], "array": shared, "nested": (shared, [None, 1.5]), "set": {1, 2}, "z": 1 + 2j}
    loaded = load_log_pickle(write(tmp_path, [frame, frame], protocol))
    assert loaded[0] is loaded[1]
    assert loaded[0]["nested"][0] is loaded[0]["array"]
    assert loaded[0]["lights"] == [(27007, True)]
    assert loaded[0]["set"] == {1, 2} and loaded[0]["z"] == 1 + 2j


def test_arrays_come_out_as_plain_arrays_even_inside_tuples(tmp_path):
    loaded = load_log_pickle(write(tmp_path, {"a": ([np.zeros(2)], np.ones(1))}))
    assert type(loaded["a"][0][0]) is np.ndarray
    assert type(loaded["a"][1]) is np.ndarray


def test_a_list_that_contains_itself_is_refused(tmp_path):
    content = [np.zeros(1)]
    content.append({"inner": (content,)})
    with pytest.raises(ForbiddenPickleError, match="a list that contains itself"):
        load_log_pickle(write(tmp_path, content))


@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch {marker}",), "posix.system"),
        (builtins.eval, ("open('{marker}', 'w')",), "builtins.eval"),
        (builtins.exec, ("open('{marker}', 'w')",), "builtins.exec"),
        (builtins.open, ("{marker}", "w"), "io.open"),
        (builtins.getattr, ("{marker}", "upper"), "builtins.getattr"),
        (np.save, ("{marker}.npy", 1), "numpy.save"),
        (np.load, ("{marker}",), "numpy.load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_call_something_is_refused_and_calls_nothing(tmp_path, function, args, named, protocol):
    marker = tmp_path / "executed"
    filled = [arg.replace("{marker}", str(marker)) if isinstance(arg, str) else arg for arg in args]
    path = write(tmp_path, [{"token": Call(function, *filled)}], protocol)
    with pytest.raises(ForbiddenPickleError) as error:
        load_log_pickle(path)
    shown = named.replace("builtins", "__builtin__") if protocol < 3 else named
    assert shown in str(error.value) or named in str(error.value)
    assert str(path) in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_the_crafted_pickles_of_these_tests_do_execute_elsewhere(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Call(os.system, f"touch {marker}")))
    assert marker.exists()


def test_a_call_hidden_in_arguments_of_an_allowed_name_is_refused(tmp_path):
    marker = tmp_path / "executed"
    inner = Call(os.system, f"touch {marker}")
    with pytest.raises(ForbiddenPickleError, match=r"system"):
        load_log_pickle(write(tmp_path, Call(set, [inner])))
    assert not marker.exists()


def test_dotted_names_do_not_reach_attributes_of_allowed_ones(tmp_path):
    crafted = b"\x80\x04" + text("numpy") + text("dtype.__class__.mro") + b"\x93."
    with pytest.raises(ForbiddenPickleError, match=r"numpy\.dtype\.__class__\.mro"):
        load_log_pickle(write(tmp_path, crafted))


def test_an_unlisted_class_is_named_with_its_file(tmp_path):
    path = write(tmp_path, [{"path": Call(os.path.join, "a", "b")}])
    with pytest.raises(ForbiddenPickleError, match=r"posixpath\.join") as error:
        load_log_pickle(path)
    assert "veh-12.pkl" in str(error.value)


def test_persistent_ids_are_refused(tmp_path):
    with pytest.raises(ForbiddenPickleError, match="persistent id"):
        load_log_pickle(write(tmp_path, b"P123\n."))


def test_arrays_of_objects_are_refused(tmp_path):
    for content in (
        np.array([{}, None], dtype=object),
        np.zeros(1, dtype=[("a", "O")]),
        np.zeros(1, dtype=[("a", int)]),
    ):
        with pytest.raises(ForbiddenPickleError, match="array of type"):
            load_log_pickle(write(tmp_path, content))


def test_object_arrays_are_refused_even_with_a_call_inside(tmp_path):
    marker = tmp_path / "executed"
    content = np.array([Call(os.system, f"touch {marker}")], dtype=object)
    with pytest.raises(ForbiddenPickleError):
        load_log_pickle(write(tmp_path, content))
    assert not marker.exists()


def test_codecs_encode_accepts_latin1_only(tmp_path):
    call = global_("_codecs", "encode")
    honest = b"\x80\x02" + call + text("ÿ") + text("latin1") + b"\x86R."
    assert load_log_pickle(write(tmp_path, honest)) == b"\xff"
    with pytest.raises(ForbiddenPickleError, match="rot13"):
        load_log_pickle(write(tmp_path, b"\x80\x02" + call + text("abc") + text("rot13") + b"\x86R."))


def test_a_shape_larger_than_its_bytes_is_refused(tmp_path):
    state = (1, (1000, 1000), np.dtype("f8"), False, b"\x00" * 8)
    crafted = Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=state)
    with pytest.raises(ForbiddenPickleError, match=r"8 bytes instead of 8000000"):
        load_log_pickle(write(tmp_path, crafted))


def test_the_flags_a_type_claims_are_not_believed(tmp_path):
    # NumPy's own __setstate__ would take item size 64 and the "holds references" flag at their word.
    state = (3, "<", None, None, None, 64, 8, 63)
    content = [Call(np.dtype, "U2", False, True, state=state)]
    array = Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), content[0], False, b"a\0\0\0b\0\0\0"))
    loaded = load_log_pickle(write(tmp_path, array))
    assert loaded.dtype == np.dtype("<U2") and not loaded.dtype.hasobject
    assert loaded.tolist() == ["ab"]


def test_a_size_given_to_bytes_reserves_no_memory(tmp_path):
    for name in ("bytes", "bytearray"):
        crafted = b"\x80\x02" + global_("builtins", name) + b"J\xff\xff\xff\x7f\x85R."
        with pytest.raises(ForbiddenPickleError, match="other than bytes"):
            load_log_pickle(write(tmp_path, crafted))


def test_allowed_names_cannot_be_altered_by_a_pickle(tmp_path):
    before = {key: vars_of(name) for key, name in PLAIN_NAMES.items()}
    for state in (b"}" + text("title") + b"Ns", b"N}" + text("title") + b"Ns\x86"):
        crafted = b"\x80\x02" + global_("numpy.core.multiarray", "scalar") + state + b"b."
        with pytest.raises(ForbiddenPickleError, match=r"change of numpy\.core\.multiarray\.scalar"):
            load_log_pickle(write(tmp_path, crafted))
    assert {key: vars_of(name) for key, name in PLAIN_NAMES.items()} == before
    assert load_log_pickle(write(tmp_path, np.float64(2.5))) == 2.5


def test_a_name_left_on_the_stack_is_no_data(tmp_path):
    with pytest.raises(ForbiddenPickleError, match=r"the mere name numpy\.dtype"):
        load_log_pickle(write(tmp_path, global_("numpy", "dtype") + b"."))


def test_bottomless_nesting_is_refused(tmp_path):
    content = []
    for _ in range(200):
        content = [content]
    with pytest.raises(ForbiddenPickleError, match="deeper than 64"):
        load_log_pickle(write(tmp_path, content))


@pytest.mark.parametrize("keep", [0, 1, 20, 0.5, -1])
def test_a_truncated_pickle_names_its_file(tmp_path, keep):
    whole = pickle.dumps([{"a": np.arange(100.0)}] * 2)
    cut = whole[: int(len(whole) * keep) if isinstance(keep, float) else keep]
    path = write(tmp_path, cut)
    with pytest.raises(CorruptPickleError, match="truncated") as error:
        load_log_pickle(path)
    assert str(path) in str(error.value) and f"{len(cut)} bytes" in str(error.value)


def test_bytes_that_are_no_pickle_are_reported_as_corrupt(tmp_path):
    with pytest.raises(CorruptPickleError):
        load_log_pickle(write(tmp_path, b"<html>404 not found</html>"))


def test_flipped_bytes_never_raise_anything_but_the_two_errors(tmp_path):
    whole = bytearray(pickle.dumps([{"token": "ab", "boxes": np.ones((2, 7)), "names": np.array(["vehicle"])}]))
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << random.integers(0, 8)
        try:
            load_log_pickle(write(tmp_path, bytes(damaged)))
        except DataPickleError:
            refused += 1
    assert refused > 50


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    path = write(tmp_path, [b"x" * 100])
    with pytest.raises(CorruptPickleError, match="larger than 64 bytes"):
        load_log_pickle(path, max_bytes=64)


def test_real_logs_load_as_the_standard_unpickler_would(navsim_mini):
    for path in sorted((navsim_mini / "navsim_logs" / "mini").glob("*.pkl")):
        expected = pickle.loads(path.read_bytes())
        loaded = load_log_pickle(path)
        assert len(loaded) == len(expected)
        for ours, theirs in zip(loaded, expected, strict=True):
            assert ours.keys() == theirs.keys()
            np.testing.assert_equal(ours, theirs)
