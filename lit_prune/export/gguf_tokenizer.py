"""A tokenizer as GGUF metadata: vocabulary, merges, special tokens, chat template.

Source: the specification of GGUF, and how llama.cpp reads vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_prune.errors import ModelError
from lit_prune.export.llama_cpp import LENT
from lit_prune.export.targets import BYTE_LEVEL, PRE_TOKENIZERS, SENTENCE_PIECE

NO_MERGE = "no merge"
"""llama.cpp wants one at least. No text is made of these two: merges begin with single characters."""
_NORMAL, _CONTROL, _USER, _UNUSED, _BYTE = 1, 3, 4, 5, 6


def add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, vocab_size: int, tokenizer_from: str | None) -> None:
    """Add a fast tokenizer with byte-pair merges, or that of another GGUF file, to what a gguf.GGUFWriter writes.

    Numbers without a token below `vocab_size`, the rows of the embedding, are filled up. A ModelError says so where
    llama.cpp is not known to cut text as the tokenizer does.
    """
    if tokenizer_from is not None:
        _copy(writer, tokenizer_from)
        return
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        raise ModelError(f"{type(tokenizer).__name__} has no tokenizer.json; {LENT}")
    data = json.loads(core.to_str())
    if data["model"]["type"] != "BPE":
        raise ModelError(f"the tokenizer is a {data['model']['type']}, only byte-pair encodings are written; {LENT}")
    pieces = bool(data["model"].get("byte_fallback"))
    tokens, types = _tokens(tokenizer, data, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    writer.add_tokenizer_model(SENTENCE_PIECE if pieces else BYTE_LEVEL)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pieces:
        # The lower its merge stands in the list, the less a piece is worth.
        made = {merge.replace(" ", "", 1): -float(rank) for rank, merge in reversed([*enumerate(merges)])}
        unmade = {_NORMAL: -1e9}
        writer.add_token_scores(
            [made.get(token, unmade.get(kind, 0.0)) for token, kind in zip(tokens, types, strict=True)]
        )
        writer.add_add_space_prefix(_adds_space(data))
    else:
        writer.add_tokenizer_pre(pre_tokenizer(data))
        writer.add_token_merges(merges or [NO_MERGE])
        writer.add_add_space_prefix(False)
    _add_special(writer, tokenizer)


def pre_tokenizer(data: Mapping[str, Any]) -> str:
    """The name in llama.cpp for how a tokenizer.json cuts text before it merges; a ModelError where it is not known."""
    whole = data.get("pre_tokenizer") or {}
    steps = whole.get("pretokenizers", [whole])
    key = tuple((step.get("pattern") or {}).get("Regex") or step.get("type", "nothing") for step in steps)
    found = PRE_TOKENIZERS.get(key)
    if found is None or data.get("normalizer") not in (None, {"type": "NFC"}):
        raise ModelError(f"llama.cpp is not known to cut text like this tokenizer ({', '.join(key)}); {LENT}")
    return found


def _tokens(
    tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    names: dict[int, str] = {number: name for name, number in tokenizer.get_vocab().items()}
    if max(names, default=-1) >= vocab_size:
        raise ModelError(
            f"the tokenizer has the token {names[max(names)]!r} with the number {max(names)}, and the model has "
            f"{vocab_size} rows of embeddings: it is another model's, or model.resize_token_embeddings was forgotten"
        )
    types = dict.fromkeys(range(vocab_size), _UNUSED) | dict.fromkeys(names, _NORMAL)
    if data["model"].get("byte_fallback"):
        types |= {number: _BYTE for number, name in names.items() if len(name) == 6 and name.startswith("<0x")}
    types |= {token["id"]: _CONTROL if token["special"] else _USER for token in data["added_tokens"]}
    return [names.get(number, f"[PAD{number}]") for number in types], [*types.values()]


def _adds_space(data: Mapping[str, Any]) -> bool:
    before = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")], ensure_ascii=False)
    return '"Prepend"' in before or '"prepend_scheme": "first"' in before or '"prepend_scheme": "always"' in before


def _add_special(writer: Any, tokenizer: Any) -> None:
    for kind in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, Mapping):  # several, by their names
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _copy(writer: Any, file: str) -> None:
    import gguf

    try:
        fields = gguf.GGUFReader(file).fields
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the GGUF file {file}: {error}") from error
    own = {name: field for name, field in fields.items() if name.startswith("tokenizer.")}
    if not own:
        raise ModelError(f"{file} holds no tokenizer")
    for name, field in own.items():
        kind = field.types[0]
        inner = field.types[1:2] if kind == gguf.GGUFValueType.ARRAY else ()
        writer.add_key_value(name, field.contents(), kind, *inner)
