"""Text to token ids and back: a byte-level BPE tokenizer with the chat, image and driving tokens of the model."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMG_START, IMG_END, IMG_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
REQUIRED_TOKENS = (TURN_START, TURN_END, IMG_START, IMG_END, IMG_CONTEXT)
"""Without these there is no chat and no place for an image."""
DRIVING_TOKENS = (
    "<loc>",
    "</loc>",
    "<FRONT VIEW>",
    "<FRONT LEFT VIEW>",
    "<FRONT RIGHT VIEW>",
    "<BACK LEFT VIEW>",
    "<BACK RIGHT VIEW>",
    "<BACK VIEW>",
)
"""What ReCogDrive adds to InternVL3's vocabulary, in the order of their ids."""

_TOKENIZER, _CONFIG, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_VOCAB, _MERGES, _ADDED = "vocab.json", "merges.txt", "added_tokens.json"
_UNKNOWN_ID = "\N{REPLACEMENT CHARACTER}"
_ROLES = ("system", "user", "assistant")
_NUMBER = r"\.\d{1,2}|[+-]?\d{1,2}"
_PIECES = (
    _NUMBER,
    r"[^\p{L}\p{N}\r\n.+-]+(?=[+-]?\.?\d)",  # what separates numbers: ", " or "), (" is one piece
    r" ?\p{L}+",
    r" ?[^\s\p{L}\p{N}]+",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


class VlmTokenizer:
    """Token ids of text. Special tokens in the text become their ids; nothing is ever added to it.

    Args:
      tokenizer: Of the `tokenizers` library.
      config: Entries of `tokenizer_config.json` to keep when saving (class, pad token, chat template, ...).
      source: Where it comes from, for messages.

    Attributes:
      pad_id: Padding, `<|endoftext|>` unless the configuration names another.
      eos_id: End of a turn, `<|im_end|>`.
      img_context_id: Stands where a vector of an image goes.

    Raises:
      ValueError: A token that the chat or its images need is not in the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, config: Mapping[str, Any] | None = None, source: str = "tokenizer"):
        self._tokenizer, self._config, self._source = tokenizer, dict(config or {}), source
        pad = self._config.get("pad_token") or END_OF_TEXT
        self._pad = pad["content"] if isinstance(pad, Mapping) else pad
        missing = [token for token in (*REQUIRED_TOKENS, self._pad) if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(
                f"{source} lacks the token(s) {', '.join(missing)}; take the tokenizer of an InternVL3 or ReCogDrive "
                f"checkpoint, or add them to the file's added tokens"
            )
        self.pad_id = self.id_of(self._pad)
        self.eos_id = self.id_of(TURN_END)
        self.img_context_id = self.id_of(IMG_CONTEXT)

    @classmethod
    def from_folder(cls, folder: str | Path, add_driving_tokens: bool = True) -> Self:
        """Reads `tokenizer.json`, or `vocab.json` and `merges.txt` as published InternVL3 folders have them.

        Args:
          folder: A checkpoint's folder, or one with the tokenizer alone.
          add_driving_tokens: Whether ReCogDrive's tokens join at the end, those there already apart: ids 151,674 to
            151,681 for InternVL3.

        Raises:
          FileNotFoundError: No tokenizer is there.
          ValueError: A file cannot be read, or lacks a token that the chat needs; names the file.
        """
        folder = Path(folder)
        config = _read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
        if (folder / _TOKENIZER).is_file():
            source, tokenizer = folder / _TOKENIZER, _read_fast(folder / _TOKENIZER)
        elif (folder / _VOCAB).is_file() and (folder / _MERGES).is_file():
            source, tokenizer = folder / _VOCAB, _read_slow(folder)
        else:
            raise FileNotFoundError(
                f"{folder} has no tokenizer: neither {_TOKENIZER} nor {_VOCAB} with {_MERGES}; copy these from the "
                f"checkpoint that the weights come from"
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if add_driving_tokens:
            # Tokens that exist keep their ids, so adding them again changes nothing.
            tokenizer.add_special_tokens([_special(token) for token in DRIVING_TOKENS])
        return cls(tokenizer, config, str(source))

    def __repr__(self) -> str:
        return f"VlmTokenizer({self._source}, {self.vocab_size} tokens)"

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are recognised, and none is added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens included. An id outside the vocabulary reads as U+FFFD, as broken UTF-8 does.

        The model's table can have more rows than there are tokens, so an untrained model may well emit such ids.
        """
        parts: list[str] = []
        known: list[int] = []
        for index in (int(index) for index in ids):
            if 0 <= index < self.vocab_size:
                known.append(index)
            else:
                parts += [self._tokenizer.decode(known, skip_special_tokens=False), _UNKNOWN_ID]
                known = []
        return "".join((*parts, self._tokenizer.decode(known, skip_special_tokens=False)))

    def id_of(self, token: str) -> int:
        """The id of one token.

        Raises:
          ValueError: It is not in the vocabulary.
        """
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(f"{token!r} is not a token of {self._source}; it has {self.vocab_size} tokens")
        return index

    @cached_property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included: the rows that the model's embedding needs at least."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides ids: vocabulary, merges, added tokens, splitting, and the padding token.

        The same for a tokenizer read from `tokenizer.json` and from `vocab.json` with `merges.txt`.
        """
        content = json.loads(self._tokenizer.to_str())
        parts = {
            "vocabulary": sorted(content["model"]["vocab"].items(), key=lambda entry: entry[1]),
            "merges": content["model"]["merges"],
            "added_tokens": sorted(content["added_tokens"], key=lambda token: token["id"]),
            "normalizer": content["normalizer"],
            "pre_tokenizer": _without_offsets(content["pre_tokenizer"]),
            "pad": self._pad,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer so that transformers' AutoTokenizer and `from_folder` read it with the same ids.

        Every file appears whole or not at all. Qwen's tokenizer is also written as `vocab.json`, `merges.txt` and
        `added_tokens.json`, which its slow implementation, used by the original code, needs.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = json.loads(self._tokenizer.to_str())
        added = sorted(content["added_tokens"], key=lambda token: token["id"])
        config = self._saved_config(added)
        if config["tokenizer_class"].startswith("Qwen2Tokenizer"):
            merges = "".join(f"{left} {right}\n" for left, right in content["model"]["merges"])
            _write(folder / _VOCAB, json.dumps(content["model"]["vocab"], ensure_ascii=False))
            _write(folder / _MERGES, "#version: 0.2\n" + merges)
            _write(folder / _ADDED, _pretty({token["content"]: token["id"] for token in added}))
        special = {key: config[key] for key in ("eos_token", "pad_token", "additional_special_tokens")}
        _write(folder / _SPECIAL, _pretty(special))
        _write(folder / _CONFIG, _pretty(config))
        _write(folder / _TOKENIZER, self._tokenizer.to_str())

    def _saved_config(self, added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The configuration the tokenizer was read with, brought up to date with its tokens."""
        kept = dict(self._config)
        if kept.get("tokenizer_class") == "TokenizersBackend":
            del kept["tokenizer_class"]  # a name of transformers 5, which older ones lack
        defaults = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 12_288,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "split_special_tokens": False,
        }
        fixed = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "unk_token": None,
            "eos_token": TURN_END,
            "pad_token": self._pad,
            "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added},
            "additional_special_tokens": [t["content"] for t in added if t["special"] and t["content"] != self._pad],
        }
        return defaults | kept | fixed


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> VlmTokenizer:
    """Makes a small tokenizer of its own from texts; the same texts give the same tokenizer.

    Text is cut so that a decimal such as "+12.34" is two tokens, sign with integer part and fraction. Integers of up to
    two digits, with either sign or none, and fractions of up to two digits are tokens whatever the texts hold, so that
    a number never seen is spelt like the others; longer ones are cut into pairs of digits. What separates two numbers,
    "), (" say, is one token if the texts have it often enough. Any text comes back from its ids unchanged.

    Args:
      texts: Texts of conversations, of every role.
      vocab_size: Most tokens it may have; fewer if the texts hold no more pairs that come twice.

    Raises:
      ValueError: `vocab_size` leaves no room for bytes, numbers and special tokens.
    """
    special = [END_OF_TEXT, *REQUIRED_TOKENS, *DRIVING_TOKENS]
    alphabet, numbers = sorted(pre_tokenizers.ByteLevel.alphabet()), _number_merges()
    smallest = len(special) + len(alphabet) + len(numbers)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} is too small: special tokens, bytes and numbers take {smallest}")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *_splits(),
            pre_tokenizers.Split(Regex(rf"\A(?:{_NUMBER})\z"), behavior="removed"),
            _bytes(),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) - len(numbers),
        min_frequency=2,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words.train_from_iterator(_with_roles(texts), trainer)
    # A piece is a number or has no digit, so the merges of numbers and of words do not meet.
    merges = [*numbers, *(tuple(pair) for pair in json.loads(words.to_str())["model"]["merges"])]
    tokens = [*special, *alphabet, *dict.fromkeys(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_splits(), _bytes()])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([_special(token) for token in special])
    return VlmTokenizer(tokenizer, source="a tokenizer trained here")


def _splits() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex("|".join(_PIECES)), behavior="isolated")]


def _bytes() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _number_merges() -> list[tuple[str, str]]:
    """Pairs that join signed and unsigned integers and fractions of up to two digits, those with a prefix first."""
    digits = "0123456789"
    merges = [(prefix, digit) for prefix in ".+-" for digit in digits]
    merges += [(prefix + first, second) for prefix in ".+-" for first in digits for second in digits]
    return merges + [(first, second) for first in digits for second in digits]


def _with_roles(texts: Iterable[str]) -> Iterable[str]:
    """The texts, each with a turn's header of every role, so that a header is three tokens as in InternVL3."""
    header = "".join(f"{role}\n" for role in _ROLES)
    for text in texts:
        yield text
        yield header
    yield header * 2


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _read_fast(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error


def _read_slow(folder: Path) -> Tokenizer:
    # transformers takes seconds to import, and only this kind of folder needs it.
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # of many kinds, for a damaged file
        raise ValueError(f"{folder}: transformers cannot read {_VOCAB} and {_MERGES}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not the entries of a tokenizer")
    return content


def _without_offsets(part: Any) -> Any:
    """A pre-tokenizer's settings but for `trim_offsets`, which moves no id."""
    if isinstance(part, Mapping):
        return {key: _without_offsets(value) for key, value in part.items() if key != "trim_offsets"}
    return [_without_offsets(entry) for entry in part] if isinstance(part, list) else part


def _pretty(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
