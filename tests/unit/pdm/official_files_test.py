"""Lists of official metric caches: paths of other machines, repeated, damaged or hostile lines."""

import pytest

from recogdrive.pdm.official_files import FILE_NAME, OfficialFile, list_files


@pytest.fixture
def add(tmp_path):
    """Function: log, token -> an empty cache file in its place."""

    def make(log_name, token, scenario_type="unknown"):
        path = tmp_path / log_name / scenario_type / token / FILE_NAME
        path.parent.mkdir(parents=True)
        path.touch()
        return path

    return make


@pytest.fixture
def lists(tmp_path):
    """Function: name, content (lines, or bytes) -> a list."""

    def write(name, content):
        path = tmp_path / "metadata" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else "\n".join(content).encode())
        return path

    return write


def test_all_lists_are_read_and_only_the_end_of_paths_counts(tmp_path, add, lists):
    for log, token in (("log2", "b"), ("log1", "c"), ("log1", "a"), ("log3", "d")):
        add(log, token)
    lists("x_metadata_node_0.csv", ["file_name", "/cpfs01/user/cache/log2/unknown/b/metric_cache.pkl"])
    lists("x_metadata_node_1.csv", ["file_name", r"D:\navsim\cache\log1\unknown\c\metric_cache.pkl", ""])
    lists("y.csv", '\ufefffile_name\r\n"/a, b/log1/unknown/a/metric_cache.pkl"\r\n'.encode())
    files = list_files(tmp_path)
    assert files == [("log1", "unknown", "a"), ("log1", "unknown", "c"), ("log2", "unknown", "b")]
    assert files[0].under(tmp_path) == tmp_path / "log1" / "unknown" / "a" / "metric_cache.pkl"


def test_a_scene_listed_twice_is_there_once(tmp_path, add, lists):
    add("log", "a")
    for name in ("0.csv", "1.csv"):
        lists(name, ["file_name", "/one/log/unknown/a/metric_cache.pkl", "/two/log/unknown/a/metric_cache.pkl"])
    assert list_files(tmp_path) == [OfficialFile("log", "unknown", "a")]


def test_without_lists_the_tree_is_looked_through(tmp_path, add):
    add("log2", "b"), add("log1", "c", "turning")
    (tmp_path / "log1" / "turning" / "d").mkdir()
    assert list_files(tmp_path) == [("log1", "turning", "c"), ("log2", "unknown", "b")]


def test_a_listed_file_that_is_missing_stays_listed(tmp_path, add, lists):
    add("log", "a")
    lists("0.csv", ["file_name", *(f"/x/log/unknown/{token}/metric_cache.pkl" for token in "ab")])
    assert [file.token for file in list_files(tmp_path)] == ["a", "b"]


def test_lists_none_of_whose_files_is_there_are_refused(tmp_path, lists):
    lists("0.csv", ["file_name", *(f"/x/log/unknown/{token}/metric_cache.pkl" for token in "ab")])
    with pytest.raises(FileNotFoundError, match=r"lists 2 scenes, but none .*log/unknown/a/metric_cache\.pkl"):
        list_files(tmp_path)


def test_a_folder_without_caches_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no official metric cache"):
        list_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        list_files(tmp_path / "nowhere")


@pytest.mark.parametrize("line", ["/a/b/c", "metric_cache.pkl", "/log/unknown/a/metric_cache.pkl.bak", "nonsense"])
def test_lines_that_are_no_cache_file_are_named_with_list_and_row(tmp_path, add, lists, line):
    add("log", "a")
    lists("0.csv", ["file_name", "/x/log/unknown/a/metric_cache.pkl", line])
    with pytest.raises(ValueError, match=r"0\.csv, row 3: .* does not end with <log>/<type>/<token>"):
        list_files(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "/x/../unknown/a/metric_cache.pkl",
        "/x/log/../a/metric_cache.pkl",
        "/x/log/unknown/../metric_cache.pkl",
        r"C:\x\log\..\a\metric_cache.pkl",
        "/x/log/unk\x00nown/a/metric_cache.pkl",
        "/x/log/unknown/a /metric_cache.pkl",
        "/x/log/unk\x1bnown/a/metric_cache.pkl",
    ],
)
def test_lines_that_lead_out_of_the_cache_are_refused(tmp_path, add, lists, line):
    add("log", "a")
    lists("0.csv", ["file_name", line])
    with pytest.raises(ValueError, match=r"0\.csv, row 2: .* names no folder, or one outside|0\.csv is no list"):
        list_files(tmp_path)


@pytest.mark.parametrize("line", ["/unknown/a/metric_cache.pkl", r"C:\unknown\a\metric_cache.pkl"])
def test_the_root_of_a_file_system_is_no_log(tmp_path, add, lists, line):
    add("log", "a")
    lists("0.csv", ["file_name", line])
    with pytest.raises(ValueError, match="does not end with"):
        list_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "starts with .* instead of file_name"),
        (b"path\n/x/log/unknown/a/metric_cache.pkl\n", "starts with .*path.* instead of file_name"),
        (b"file_name,size\n", "starts with"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b'file_name\n"/x/log/unknown/a/metric_cache.pkl\n', "is no list"),
        (b"file_name\n" + b"x" * 200_000, "field larger than field limit"),
        (b"file_name\n/x/log/unknown/a/metric_cache.pkl,12\n", "2 columns instead of one path"),
    ],
)
def test_damaged_lists_are_named(tmp_path, add, lists, content, reason):
    add("log", "a")
    path = lists("0.csv", content)
    with pytest.raises(ValueError, match=reason) as error:
        list_files(tmp_path)
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


def test_a_token_in_two_places_is_refused(tmp_path, add):
    add("log1", "a"), add("log2", "a")
    with pytest.raises(ValueError, match=r"Token 'a' comes twice, from .*log1.* and .*log2"):
        list_files(tmp_path)


def test_the_lists_alone_are_no_caches(tmp_path, lists):
    lists("0.csv", ["file_name"])
    with pytest.raises(FileNotFoundError, match="holds no official metric cache"):
        list_files(tmp_path)
