"""Pickles written by hand: what instructions do, which are refused, and what a stream cannot make the reader spend."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from recogdrive.data.safe_pickle import (
    CorruptPickleError,
    ForbiddenPickleError,
    Record,
    RecordForm,
    load_record_pickle,
)

RECORDS = {
    ("town", "Pose"): RecordForm.SLOTS,
    ("town", "Car"): RecordForm.STATE,
    ("town", "Kind"): RecordForm.CALL,
    ("town", "Outline"): RecordForm.CONTENT,
}


def load(data, **how):
    return load_record_pickle(data, RECORDS, what="a town", name="town.pkl", max_bytes=2**20, **how)


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def of(name):
    return b"ctown\n" + name.encode() + b"\n"


def refused(data, **how):
    with pytest.raises(ForbiddenPickleError) as error:
        load(data, **how)
    message = str(error.value)
    assert message.startswith("town.pkl contains ") and "which a town has no use for" in message
    return message


@pytest.mark.parametrize(
    ("instructions", "value"),
    [
        (b"N.", None),
        (b"I01\n.", True),
        (b"I-12\n.", -12),
        (b"L123456789012L\n.", 123456789012),
        (b"F1.5\n.", 1.5),
        (b"G\x3f\xf8\x00\x00\x00\x00\x00\x00.", 1.5),
        (b"J\xff\xff\xff\xff.", -1),
        (b"M\x01\x02.", 513),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00.", 2**64 - 1),
        (b"Vx\\u00fc\n.", "xü"),
        (b"\x8c\x02\xc3\xbc.", "ü"),
        (b"\x8d\x01\x00\x00\x00\x00\x00\x00\x00a.", "a"),
        (b"C\x02ab.", b"ab"),
        (b"\x8e\x01\x00\x00\x00\x00\x00\x00\x00a.", b"a"),
        (b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", bytearray(b"a")),
        (b"(K\x01K\x02l.", [1, 2]),
        (b"(K\x01K\x02d.", {1: 2}),
        (b"(K\x01t.", (1,)),
        (b"K\x01K\x02K\x03\x87.", (1, 2, 3)),
        (b"]K\x01a(K\x02K\x03e.", [1, 2, 3]),
        (b"}K\x01K\x02s(K\x03K\x04u.", {1: 2, 3: 4}),
        (b"\x8f(K\x01K\x02\x90.", {1, 2}),
        (b"(K\x01\x91.", frozenset({1})),
        (b"]p0\ng0\n\x86.", None),
        (b"]q\x00K\x01ah\x00\x86.", ([1], [1])),
        (b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00K\x05.", 5),
    ],
)
def test_instructions_give_what_the_standard_unpickler_gives(instructions, value):
    loaded = load(instructions)
    assert loaded == pickle.loads(instructions) and type(loaded) is type(pickle.loads(instructions))
    assert value is None or loaded == value


@pytest.mark.parametrize(
    ("instructions", "named"),
    [
        (b"P1\n.", "a persistent id"),
        (b"K\x01Q.", "a persistent id"),
        (b"(itown\nKind\n.", "the instruction INST"),
        (b"(" + of("Kind") + b"o.", "the instruction OBJ"),
        (of("Kind") + b")}\x92.", "the instruction NEWOBJ_EX"),
        (b"\x82\x01.", "a class by its number"),
        (b"\x97.", "a buffer outside"),
        (b"K\x012\x86.", "the instruction DUP"),
        (b"K\x010K\x01.", "the instruction POP"),
        (b"(1.", "the instruction POP_MARK"),
        (b"U\x01a.", "text of Python 2"),
        (b"K\x01K\x02\x93.", "a name that is no text"),
        (b"K\x01)R.", "a call of a value of type int"),
        (of("Kind") + b"]R.", "without a tuple of arguments"),
        (b"]}b.", "a change of list"),
        (of("Kind") + b"}b.", "a change of town.Kind"),
        (b"K\x01K\x02a.", "a list's items put into a value of type int"),
        (of("Kind") + b".", "the mere name town.Kind"),
        (b"cnumpy\nndarray\n)R.", "a call of numpy.ndarray"),
    ],
)
def test_instructions_that_data_has_no_use_for_are_refused_by_name(instructions, named):
    assert named in refused(instructions)


@pytest.mark.parametrize(
    "instructions",
    [
        b"",
        b".",
        b"K",
        b"K\x01",
        b"K\x01K\x02.",
        b"h\x05.",
        b"\x86.",
        b"t.",
        b"(]\x86t.",
        b"\xff.",
        b"\x80\x06N.",
        b"g-1\n.",
    ],
)
def test_streams_that_do_not_parse_are_corrupt(instructions):
    with pytest.raises(CorruptPickleError, match=r"town\.pkl .* is not a readable pickle"):
        load(instructions)


@pytest.mark.parametrize(
    "instructions",
    [
        b"]r\xff\xff\xff\x7f.",
        b"]p2000000000\n.",
        b"B\xff\xff\xff\xff.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x96\xff\xff\xff\xff\x0f\x00\x00\x00.",
        b"\x8d\xff\xff\xff\xff\x0f\x00\x00\x00.",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\x7f.",
        b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x0a\x00\x00\x00S999999999\x85RC\x00\x86R.",
    ],
)
def test_sizes_that_a_stream_only_claims_reserve_no_memory(instructions):
    tracemalloc.start()
    with pytest.raises((CorruptPickleError, ForbiddenPickleError)):
        load(instructions)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    "instructions", [b"\x8a\x0a" + b"\x01" * 10, b"L" + b"9" * 60 + b"L\n", b"I" + b"9" * 5000 + b"\n"]
)
def test_integers_beyond_any_clock_or_id_are_refused(instructions):
    assert "an integer of" in (message := refused(instructions + b".")) or "a number of" in message


def test_a_key_whose_hash_would_take_for_ever_is_refused():
    # Each tuple holds the one before twice: hashing the last one would take 2^40 steps.
    doubled = b"X\x01\x00\x00\x00x\x94" + b"".join(
        b"j" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) + b"\x86\x94" for i in range(40)
    )
    assert "a dict with a tuple as its key" in refused(b"]" + b"(" + doubled + b"l}j" + struct.pack("<I", 40) + b"Ns.")


def test_containers_that_repeat_each_other_exponentially_are_refused():
    value = [0] * 10
    for _ in range(12):
        value = [value] * 10
    assert "containers that repeat each other to 1111111111111" in refused(pickle.dumps(value))


def test_containers_may_repeat_each_other_some_times():
    frame = {"a": [1, 2, 3]}
    assert load(pickle.dumps([frame] * 1000)) == [frame] * 1000


def test_copies_of_one_remembered_buffer_cannot_fill_the_memory():
    buffer = b"\x8e" + struct.pack("<Q", 100_000) + bytes(100_000) + b"\x94"
    stream = b"(" + buffer + b"cbuiltins\nbytearray\n\x94" + b"h\x01h\x00\x85R" * 100 + b"l."
    assert "more memory than its length accounts for" in refused(stream)


def test_a_run_has_a_longest_length():
    assert load(b"(" + b"N" * 97 + b"l.", max_instructions=100) == [None] * 97
    assert "more than 100 instructions" in refused(b"(" + b"N" * 98 + b"l.", max_instructions=100)


def test_an_array_is_not_to_be_had_before_it_is_whole():
    begun = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    assert "an unfinished array" in refused(begun + b".")
    assert "an unfinished array" in refused(b"](" + begun + b"e.")


def test_an_array_remembered_before_its_content_is_the_whole_one_afterwards():
    array = np.arange(3.0)
    first, second = load(pickle.dumps([array, array], 2))
    assert first is second and type(first) is np.ndarray
    np.testing.assert_array_equal(first, array)


@pytest.mark.parametrize(
    ("dtype", "shape", "content", "named"),
    [
        ("U1", (1,), b"\xff\xff\xff\x7f", "no characters"),
        ("U1", (1,), b"\x00\xd8\x00\x00", "no characters"),
        ("S0", (10**9,), b"", "shape (1000000000,)"),
        ("f8", (-1,), b"", "no tuple of sizes"),
        ("f8", (True,), bytes(8), "no tuple of sizes"),
        ("f8", (2,), bytes(8), "with 8 bytes instead of 16"),
        ("O", (1,), bytes(8), "an array of type 'O'"),
        ("f8,f8", (1,), bytes(16), "an array of type 'f8,f8'"),
        ("(9999,9999)f8", (1,), bytes(8), "an array of type"),
        ("M8[s]", (1,), bytes(8), "an array of type"),
    ],
)
def test_arrays_whose_parts_do_not_agree_are_refused(dtype, shape, content, named):
    array = (
        b"cnumpy.core.numeric\n_frombuffer\n("
        + pickle.dumps(content, 3)[2:-1]
        + b"cnumpy\ndtype\n"
        + text(dtype)
        + b"\x85R"
        + pickle.dumps(shape, 2)[2:-1]
        + text("C")
        + b"tR."
    )
    assert named in refused(array)


def test_objects_of_listed_classes_come_out_as_what_their_pickle_says():
    pose = of("Pose") + b")\x81N}" + text("x") + b"K\x05s\x86b"
    kind = of("Kind") + b"K\x03\x85R"
    outline = of("Outline") + b")RC\x02abb"
    car = load(of("Car") + b")\x81}(" + text("pose") + pose + text("kind") + kind + text("outline") + outline + b"ub.")
    assert isinstance(car, Record) and car.class_name == "town.Car" and car.args == ()
    assert car.fields["pose"].class_name == "town.Pose" and car.fields["pose"].fields == {"x": 5}
    assert car.fields["kind"].args == (3,) and car.fields["kind"].fields == {}
    assert car.fields["outline"].args == (b"ab",)


@pytest.mark.parametrize(
    ("instructions", "named"),
    [
        (of("Car") + b")\x81.", "a town.Car without its state"),
        (of("Car") + b")R}b.", "a call of town.Car"),
        (of("Car") + b"K\x01\x85\x81}b.", "an object of town.Car"),
        (of("Car") + b")\x81}b}b.", "a town.Car that is not just given a dict of attributes"),
        (of("Car") + b")\x81]b.", "a town.Car that is not just given a dict of attributes"),
        (of("Car") + b")\x81}K\x01K\x01sb.", "a town.Car that is not just given a dict of attributes"),
        (of("Car") + b")\x81N}\x86b.", "a town.Car that is not just given a dict of attributes"),
        (of("Pose") + b")\x81}b.", "a town.Pose without the values of its slots"),
        (of("Pose") + b")\x81}}\x86b.", "a town.Pose without the values of its slots"),
        (of("Kind") + b")\x81.", "an object of town.Kind"),
        (of("Kind") + b")R}b.", "a town.Kind that is not just called"),
        (of("Outline") + b"C\x01a\x85R.", "a call of town.Outline"),
        (of("Outline") + b")R.", "a town.Outline without its state"),
        (of("Outline") + b")R]b.", "a town.Outline that is not just given its content"),
        (of("Car") + b")\x81\x94}" + text("self") + b"h\x00sb.", "a town.Car that contains itself"),
        (of("Truck") + b")\x81}b.", "town.Truck"),
        (b"ctown\nCar.mro\n)\x81.", "town.Car.mro"),
    ],
)
def test_objects_written_in_another_form_than_their_class_are_refused(instructions, named):
    assert named in refused(instructions)


def test_attributes_of_records_cannot_be_set_by_a_pickle():
    # `fields` are data: even names of the record's own attributes change nothing about it.
    car = load(of("Car") + b")\x81}" + text("class_name") + text("os.system") + b"sb.")
    assert car.class_name == "town.Car" and car.fields == {"class_name": "os.system"}


def test_long_and_unprintable_names_are_shown_short_and_escaped():
    message = refused(b"c" + b"x" * 10_000 + b"\nname\n.")
    assert len(message) < 600
    assert "\\x1b" in refused(b"c\x1b[31m\nname\n.")


def test_what_is_larger_than_allowed_is_not_looked_at(tmp_path):
    path = tmp_path / "town.pkl"
    path.write_bytes(pickle.dumps([1] * 100))
    for source in (path, path.read_bytes()):
        with pytest.raises(CorruptPickleError, match=r"town\.pkl is larger than 64 bytes; it cannot be a town"):
            load_record_pickle(source, RECORDS, what="a town", name="town.pkl", max_bytes=64)
