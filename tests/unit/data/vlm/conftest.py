"""A tokenizer that is easy to follow, small images, and mixtures of conversations made of both."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from recogdrive.data.vlm.meta import ConversationMixture
from recogdrive.data.vlm.samples import VlmSamples
from recogdrive.data.vlm.tiling import Tiling

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
SIDE = 8


class LetterTokenizer:
    """Special tokens by their place in `SPECIAL`, every other letter by its code."""

    pad_id = 0
    fingerprint = "letters"

    def encode(self, text):
        pieces = re.findall("|".join(map(re.escape, SPECIAL)) + "|.", text, re.DOTALL)
        return [self.id_of(p) if p in SPECIAL else 100 + ord(p) for p in pieces]

    def id_of(self, token):
        return SPECIAL.index(token)

    def text_of(self, ids):
        return "".join(SPECIAL[i] if i < 100 else chr(i - 100) for i in ids)


@pytest.fixture
def tokenizer():
    return LetterTokenizer()


@pytest.fixture
def image_file(tmp_path):
    """Writes an image of noise of a given size; returns its name."""

    def write(name="a.png", width=16, height=8, seed=0, **options):
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name, **options)
        return name

    return write


@pytest.fixture
def write_lines(tmp_path):
    """Writes records, or raw lines, as JSONL; returns the path."""

    def write(records, name="a.jsonl"):
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in lines))
        return tmp_path / name

    return write


@pytest.fixture
def write_meta(tmp_path):
    """Writes a meta file over annotation files of `tmp_path`; returns the path."""

    def write(**data_sets):
        meta = {name: {"root": "", "annotation": f"{name}.jsonl"} | entry for name, entry in data_sets.items()}
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        return tmp_path / "meta.json"

    return write


@pytest.fixture
def make_samples(tmp_path, write_lines, write_meta, tokenizer):
    """Samples of records: tiles of 8 pixels, 2 tokens each, at most 4 of them."""

    def make(records, max_seq_length=200, max_tiles=4, **entry):
        write_lines(records)
        mixture = ConversationMixture(write_meta(a=entry), base_folder=tmp_path)
        tiling = Tiling(SIDE, max_tiles=max_tiles)
        return VlmSamples(mixture, tokenizer, tiling, tokens_per_tile=2, max_seq_length=max_seq_length)

    return make


@pytest.fixture
def record():
    """A record of one question and one answer."""

    def make(question="q", answer="a", **entries):
        turns = [
            {"from": "system", "value": ""},
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer},
        ]
        return {"conversations": turns} | entries

    return make
