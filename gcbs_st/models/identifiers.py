"""Makes a tokenizer split `parseHTTPHeader` and `parse_http_header` into parse, http, header, as queries are written.

The rule is part of the tokenizer's own normaliser, so it is saved with the model and works wherever that is loaded.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

# Between a small letter or digit and a capital, before the last capital of several that a small letter follows, and
# in place of underscores. It comes before the tokenizer's own normaliser, which may lower the case.
BOUNDARY = r"(?<=[\p{Ll}\p{N}])(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll})|_+"


def make_identifiers_words(model: SentenceTransformer) -> None:
    """Makes the tokenizer of a model split identifiers, in place; raises a ValueError if it is not a fast one."""
    tokenizer: Any = model.tokenizer
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        got = type(tokenizer).__name__
        raise ValueError(f"model: split_identifiers needs a fast tokenizer, which has a normaliser; got {got}.")
    boundary = normalizers.Replace(Regex(BOUNDARY), " ")
    own = backend.normalizer
    backend.normalizer = boundary if own is None else normalizers.Sequence([boundary, own])
    if backend is not tokenizer:
        # Some classes (BERT's) make their own normaliser whenever they are loaded; the general one keeps what was saved.
        first: Any = model[0]
        first.processor = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=tokenizer.model_max_length,
            model_input_names=tokenizer.model_input_names,
            padding_side=tokenizer.padding_side,
            truncation_side=tokenizer.truncation_side,
            **tokenizer.special_tokens_map,
        )
