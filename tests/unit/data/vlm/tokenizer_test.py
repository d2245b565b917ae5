"""Tokens of text: InternVL3's vocabulary with ReCogDrive's tokens, and small tokenizers trained on the spot."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from recogdrive.data.vlm.tokenizer import DRIVING_TOKENS, VlmTokenizer, train_tokenizer

CHAT = "<|im_start|>user\n<img><IMG_CONTEXT></img>\nWhere to?<|im_end|>\n<|im_start|>assistant\n<loc>(+1.23, 0.0)</loc>"


def driving_texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    points = [", ".join(f"({x:+.2f}, {y:+.2f}, 0.0)" for x, y in rng.normal(0, 9, (8, 2))) for _ in range(count)]
    return [f"Here is the planning trajectory [PT, {text}]." for text in points]


@pytest.fixture(scope="module")
def trained() -> VlmTokenizer:
    return train_tokenizer(driving_texts(200), vocab_size=1024)


@pytest.fixture(scope="module")
def internvl_folder(shared_dir) -> Path:
    return shared_dir / "data" / "tokenizer"


@pytest.fixture(scope="module")
def internvl(internvl_folder) -> VlmTokenizer:
    return VlmTokenizer.from_folder(internvl_folder)


@pytest.fixture(scope="module")
def saved_internvl(internvl, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    internvl.save(folder)
    return folder


def test_recogdrives_tokens_follow_internvl3s(internvl):
    assert [internvl.id_of(token) for token in DRIVING_TOKENS] == list(range(151_674, 151_682))
    assert internvl.vocab_size == 151_682
    assert (internvl.pad_id, internvl.eos_id, internvl.img_context_id) == (151_643, 151_645, 151_667)


def test_without_driving_tokens_the_vocabulary_is_the_files(internvl_folder):
    tokenizer = VlmTokenizer.from_folder(internvl_folder, add_driving_tokens=False)
    assert tokenizer.vocab_size == 151_674
    with pytest.raises(ValueError, match=r"'<loc>' is not a token of .*tokenizer\.json; it has 151674 tokens"):
        tokenizer.id_of("<loc>")


def test_special_tokens_are_recognised_and_none_is_added(internvl):
    ids = internvl.encode(CHAT)
    assert ids[0] == internvl.id_of("<|im_start|>")
    assert ids.count(internvl.img_context_id) == 1
    assert internvl.id_of("<loc>") in ids
    assert internvl.encode("a") == internvl.encode("a<|im_end|>")[:-1]
    assert internvl.decode(ids) == CHAT


def test_an_id_beyond_the_vocabulary_reads_as_a_replacement_character(trained):
    ids = [*trained.encode("left"), trained.vocab_size, *trained.encode("right"), -1]
    assert trained.decode(ids) == "left\ufffdright\ufffd"


def test_adding_driving_tokens_again_changes_nothing(internvl, saved_internvl):
    again = VlmTokenizer.from_folder(saved_internvl)
    assert again.vocab_size == internvl.vocab_size
    assert again.fingerprint == internvl.fingerprint


def test_transformers_reads_a_saved_tokenizer_with_the_same_ids(internvl, saved_internvl):
    loaded = AutoTokenizer.from_pretrained(saved_internvl)
    assert type(loaded).__name__ == "Qwen2Tokenizer"
    assert len(loaded) == internvl.vocab_size
    assert (loaded.pad_token, loaded.eos_token) == ("<|endoftext|>", "<|im_end|>")
    for text in (CHAT, "<BACK LEFT VIEW> 1.5 Größe 你是", "e\u0301 \x02\n\n  x"):
        assert loaded(text)["input_ids"] == internvl.encode(text)


def test_a_folder_with_vocabulary_and_merges_gives_the_same_tokenizer(internvl, saved_internvl, tmp_path):
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(saved_internvl / name, tmp_path)
    # As in a published folder, whose config.json names code of its own: it must not run.
    code = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "auto_map": code}))
    tokenizer = VlmTokenizer.from_folder(tmp_path)
    assert tokenizer.encode(CHAT) == internvl.encode(CHAT)
    assert tokenizer.fingerprint == internvl.fingerprint


def test_a_chat_template_survives_saving(trained, tmp_path):
    trained.save(tmp_path / "a")
    path = tmp_path / "a" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages }}"}))
    VlmTokenizer.from_folder(tmp_path / "a").save(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


def test_a_trained_tokenizer_is_saved_and_read(trained, tmp_path):
    trained.save(tmp_path)
    again, loaded = VlmTokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == trained.fingerprint
    for text in (*driving_texts(3), CHAT):
        assert again.encode(text) == trained.encode(text) == loaded(text)["input_ids"]
        assert loaded.decode(trained.encode(text)) == text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_padding_and_truncation_of_the_file_do_not_act(trained, tmp_path):
    trained.save(tmp_path)
    file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    file.enable_padding(length=50)
    file.enable_truncation(3)
    file.save(str(tmp_path / "tokenizer.json"))
    assert VlmTokenizer.from_folder(tmp_path).encode("[PT, (+1.23") == trained.encode("[PT, (+1.23")


def test_the_fingerprint_differs_with_tokens_and_padding(trained, internvl_folder, internvl, tmp_path):
    other = train_tokenizer(driving_texts(200), vocab_size=720)
    without = VlmTokenizer.from_folder(internvl_folder, add_driving_tokens=False)
    trained.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|im_end|>"}))
    padded = VlmTokenizer.from_folder(tmp_path)
    assert padded.pad_id == padded.eos_id
    prints = {tokenizer.fingerprint for tokenizer in (trained, other, internvl, without, padded)}
    assert len(prints) == 5


def test_a_worker_receives_the_same_tokenizer(trained):
    assert pickle.loads(pickle.dumps(trained)).encode(CHAT) == trained.encode(CHAT)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: neither tokenizer\.json nor vocab\.json"):
        VlmTokenizer.from_folder(tmp_path)


def test_a_damaged_file_is_named(trained, tmp_path):
    trained.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text()[:1000])
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer of the tokenizers library"):
        VlmTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("[]", "holds a list")])
def test_a_damaged_configuration_is_named(trained, tmp_path, text, reason):
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json {reason}"):
        VlmTokenizer.from_folder(tmp_path)


def test_damaged_merges_are_named(tmp_path):
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(ValueError, match=r"transformers cannot read vocab\.json and merges\.txt"):
        VlmTokenizer.from_folder(tmp_path)


def test_missing_chat_tokens_are_named_with_the_remedy(trained, tmp_path):
    trained.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<IMG_CONTEXT>", "<IMAGE>").replace("</img>", "</image>"))
    with pytest.raises(ValueError, match=r"tokenizer\.json lacks the token\(s\) </img>, <IMG_CONTEXT>; take the"):
        VlmTokenizer.from_folder(tmp_path)


def test_a_missing_padding_token_is_named(trained, tmp_path):
    trained.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": {"content": "<pad>"}}))
    with pytest.raises(ValueError, match=r"lacks the token\(s\) <pad>"):
        VlmTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("sign", ["", "+", "-"])
def test_every_decimal_of_two_and_two_digits_is_two_tokens(sign):
    tokenizer = train_tokenizer(["no number here"], vocab_size=1024)
    for number in (0, 7, 35, 99):
        for hundredths in (0, 5, 50, 99):
            text = f"{sign}{number}.{hundredths:02}"
            assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == [f"{sign}{number}", f".{hundredths:02}"]


def test_longer_numbers_are_cut_into_pairs_of_digits(trained):
    assert [trained.decode([i]) for i in trained.encode("-1234.5678")] == ["-12", "34", ".56", "78"]


def test_a_point_of_a_trajectory_is_nine_tokens(trained):
    one, two = "(+12.34, -0.56, 0.0)", "(+12.34, -0.56, 0.0), (+17.20, +0.02, -0.01)"
    assert len(trained.encode(two)) - len(trained.encode(one)) == 9


def test_a_turns_header_is_three_tokens(trained):
    for role in ("system", "user", "assistant"):
        assert len(trained.encode(f"<|im_start|>{role}\nHere")) == 3 + len(trained.encode("Here"))


# A busy machine is no reason to fail.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
def test_any_text_comes_back_from_its_ids(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_every_byte_is_a_token(trained):
    text = "".join(map(chr, range(0x800))) + "\u20ac你\U0001f697"
    assert trained.decode(trained.encode(text)) == text


def test_training_is_the_same_in_another_process(trained):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tokenizer_test import driving_texts;"
        "from recogdrive.data.vlm.tokenizer import train_tokenizer;"
        "print(train_tokenizer(driving_texts(200), vocab_size=1024).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == trained.fingerprint


def test_a_vocabulary_holds_what_fits(trained):
    smaller = train_tokenizer(driving_texts(200), vocab_size=710)
    assert smaller.vocab_size == 710
    assert trained.vocab_size <= 1024
    assert len(smaller.encode(driving_texts(1)[0])) > len(trained.encode(driving_texts(1)[0]))


def test_a_vocabulary_too_small_is_refused():
    with pytest.raises(ValueError, match="vocab_size=600 is too small: special tokens, bytes and numbers take 700"):
        train_tokenizer(["text"], vocab_size=600)
