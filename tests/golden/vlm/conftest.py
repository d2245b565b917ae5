"""What the reference was run with: its tokenizer and tiling."""

import json

import pytest
from tokenizers import Tokenizer

from recogdrive.data.vlm.tiling import Tiling


class ReferenceTokenizer:
    """The stored tokenizer with the tokens that ReCogDrive adds, as the reference loads it."""

    def __init__(self, path, added_tokens):
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.add_special_tokens(added_tokens)
        self.pad_id = self.id_of("<|endoftext|>")

    def encode(self, text):
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def id_of(self, token):
        return self._tokenizer.token_to_id(token)


@pytest.fixture(scope="session")
def reference_tokenizer(shared_dir, golden_dir):
    added = json.loads((golden_dir / "vlm" / "prompts.json").read_text())["added_tokens"]
    return ReferenceTokenizer(shared_dir / "data" / "tokenizer" / "tokenizer.json", added)


@pytest.fixture(scope="session")
def tiling_of():
    """A setting of the golden data as a tiling."""

    def make(setting, image_size, min_tiles):
        return Tiling(
            image_size,
            min_tiles,
            setting["max_dynamic_patch"],
            setting["use_thumbnail"],
            setting["dynamic_image_size"],
        )

    return make
