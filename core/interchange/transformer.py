"""Weights of diffusers' ``DiTTransformer2DModel`` in our ``DiT``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backbones.dit import DiT

# Options of its configuration: the values that have an equal here, None for those that may be anything.
_OPTIONS: dict[str, tuple[Any, ...] | None] = {
    "num_attention_heads": None,
    "attention_head_dim": None,
    "in_channels": None,
    "out_channels": None,
    "num_layers": None,
    "dropout": (0.0,),
    "norm_num_groups": None,  # has no effect
    "attention_bias": None,
    "sample_size": None,  # ours takes any
    "patch_size": None,
    "activation_fn": ("gelu-approximate",),
    "num_embeds_ada_norm": None,
    "upcast_attention": None,  # a matter of precision
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-5, 1e-6),
}
_DEFAULTS = {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "num_layers": 28, "patch_size": 2}
_NAMES = {  # ours to theirs
    "embed": "pos_embed.proj",
    "time.input": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
    "time.output": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
    "labels.label.table": "transformer_blocks.0.norm1.emb.class_embedder.embedding_table",
    "modulation": "proj_out_1",
    "output": "proj_out_2",
}
_BLOCK_NAMES = {
    "modulation": "norm1.linear",
    "attention.query": "attn1.to_q",
    "attention.key": "attn1.to_k",
    "attention.value": "attn1.to_v",
    "attention.output": "attn1.to_out.0",
    "mlp.input": "ff.net.0.proj",
    "mlp.output": "ff.net.2",
}


def dit_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the ``DiT`` that a configuration of ``DiTTransformer2DModel`` describes.

    Raises:
        ValueError: an option or a value that has no equal here.
    """
    for key, value in config.items():
        if key.startswith("_"):  # the class, the version
            continue
        if key not in _OPTIONS:
            raise ValueError(f"DiTTransformer2DModel has no option known here that is called {key!r}")
        if (choices := _OPTIONS[key]) is not None and value not in choices:
            raise ValueError(f"{key}={value!r} has no equal here. Choices: {', '.join(map(repr, choices))}")
    own = _DEFAULTS | {key: value for key, value in config.items() if value is not None}
    return {
        "channels": own["in_channels"],
        "output_channels": own.get("out_channels", own["in_channels"]),
        "patch": [own["patch_size"]] * 2,
        "width": own["num_attention_heads"] * own["attention_head_dim"],
        "depth": own["num_layers"],
        "heads": own["num_attention_heads"],
        "labels": own.get("num_embeds_ada_norm", 1000),
        "positions": "sincos",
        "timesteps": 1000,
        "gated": False,
        "qk_norm": False,
        "bias": True,
    }


def dit_from_diffusers(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> DiT:
    """A ``DiT`` with the outputs of diffusers' ``DiTTransformer2DModel`` at its ``sample_size``:
    ``net(x, t, {"label": y})`` at timestep ``1000 t - 1``, no label being its null class. With a learned variance half
    of the channels are the noise, the others the variance: prediction ``learned_range``.

    Args:
        config: its configuration (``config.json``).
        state_dict: its weights.

    Raises:
        ValueError: an option without an equal; a weight that is missing, or one too many; blocks that do not share
            their embedding of time and label, as those of every converted checkpoint do.
    """
    net, theirs = DiT(**dit_options(config)), dict(state_dict)
    theirs.pop("pos_embed.pos_embed", None)  # the same features, made anew
    names = dict(_NAMES)
    for i in range(len(net.blocks)):
        names |= {f"blocks.{i}.{own}": f"transformer_blocks.{i}.{other}" for own, other in _BLOCK_NAMES.items()}
    loaded = {}
    for name, parameter in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        key = f"{names[layer]}.{kind}"
        if key in theirs:
            loaded[name] = theirs.pop(key)
        elif kind == "bias" and config.get("attention_bias") is False:
            loaded[name] = torch.zeros_like(parameter)
        else:
            raise ValueError(f"the weights lack {key}")
    loaded["embed.weight"] = loaded["embed.weight"].permute(0, 2, 3, 1).flatten(1)  # a convolution over patches
    for key, value in list(theirs.items()):
        block, embedding, rest = key.partition(".norm1.emb.")
        first = state_dict.get(f"transformer_blocks.0.norm1.emb.{rest}")
        if not embedding or first is None:
            raise ValueError(f"the weights have {key}, which has no equal here")
        if not torch.equal(value, first):
            raise ValueError(f"{block} embeds time or label in its own way: one embedding for all is needed")
    net.load_state_dict(loaded)
    return net
