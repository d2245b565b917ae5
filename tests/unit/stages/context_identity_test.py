"""What planners were trained on, kept with their weights and compared."""

import json

import jax.numpy as jnp
import pytest

from recogdrive.data.context import ContextShape, SceneTokens
from recogdrive.experiment import ConfigurationError
from recogdrive.stages.context_identity import context_dtype, describe_context, require_same_context


class Cache:
    """A context source that knows what it is made of."""

    num_tokens, width, dtype = 5, 3, "bfloat16"

    def __init__(self, **fields):
        self.fields = fields
        self.fingerprint = "".join(fields.values()).ljust(64, "0")


def parent_of(folder, context):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"experiment": "debug_il", "context": describe_context(context)}))
    return folder


def check(context, parent, allowed=False):
    require_same_context(context, parent, allowed=allowed, binding="Evaluate")


def test_a_run_records_kind_shape_and_fields():
    assert describe_context(SceneTokens()) == {"source": "SceneTokens", "num_tokens": 128, "width": 52}
    described = describe_context(Cache(weights="a", prompt="b"))
    assert described["fields"] == {"weights": "a", "prompt": "b"} and described["fingerprint"].startswith("ab")
    assert json.loads(json.dumps(described)) == described


def test_tokens_are_float32_unless_the_source_says_otherwise():
    assert context_dtype(SceneTokens()) == jnp.float32 and context_dtype(Cache()) == jnp.bfloat16


def test_the_same_context_passes(tmp_path):
    check(Cache(weights="a"), parent_of(tmp_path, Cache(weights="a")))


def test_another_context_is_refused_with_both_and_every_field_that_differs(tmp_path):
    parent = parent_of(tmp_path, Cache(weights="aaaa", prompt="q", tiles="9"))
    expected = r"trained on the context aaaaq9.* would now read bbbbq1.*\(tiles: '1' instead of '9'; weights: 'bbbb'"
    with pytest.raises(ConfigurationError, match=expected) as refused:
        check(Cache(weights="bbbb", prompt="q", tiles="1"), parent)
    assert "Evaluate.allow_other_context = True" in str(refused.value) and "prompt" not in str(refused.value)


def test_another_context_can_be_allowed(tmp_path):
    check(Cache(weights="b"), parent_of(tmp_path, Cache(weights="a")), allowed=True)


def test_sources_without_fingerprint_are_not_compared(tmp_path):
    check(ContextShape(5, 3), parent_of(tmp_path, Cache(weights="a")))
    check(Cache(weights="a"), parent_of(tmp_path, ContextShape(5, 3)))


@pytest.mark.parametrize("text", [None, "{", "[]", '{"context": 3}', "{}"])
def test_weights_that_say_nothing_of_their_context_are_not_compared(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    check(Cache(weights="a"), tmp_path)


def test_a_weights_file_is_not_compared(tmp_path):
    path = tmp_path / "planner.ckpt"
    path.write_bytes(b"")
    check(Cache(weights="a"), path)
