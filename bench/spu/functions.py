"""What SPU is asked to compute, in jax; imported only by SPU's own Python.

Activations and softmax are those that PUMA gives to SPU: piecewise polynomials, and
exp(x) = (1 + x / 32)^32 as the engine's setting. Each function has an exact twin, for the error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
_LEFT = (-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728)
_MIDDLE = (0.008526321541038084, 0.5, 0.3603292692789629, -0.037688200365904236)
_MIDDLE_6 = 0.0018067462606141187
_CLIP = -14.0


def puma_gelu(x: Array) -> Array:
    """GeLU of arXiv 2307.12533, section 4.1."""
    low, mid, high = x < -4.0, x < -1.95, x > 3.0
    x2 = jnp.square(x)
    x3 = x * x2
    left = _LEFT[3] * x3 + _LEFT[2] * x2 + _LEFT[1] * x + _LEFT[0]
    x4, x6 = jnp.square(x2), jnp.square(x3)
    middle = _MIDDLE_6 * x6 + _MIDDLE[3] * x4 + _MIDDLE[2] * x2 + _MIDDLE[1] * x + _MIDDLE[0]
    return high * x + (low ^ mid) * left + (mid ^ high ^ True) * middle


def puma_softmax(x: Array) -> Array:
    """Softmax of arXiv 2307.12533, section 4.2: exp is cut to zero below -14."""
    x = x - jnp.max(x, -1, keepdims=True)
    powers = (x > _CLIP) * jnp.exp(x)  # below, the engine's power of 32 is large, not small
    return powers / jnp.sum(powers, -1, keepdims=True)


def exact_gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def exact_softmax(x: Array) -> Array:
    return jax.nn.softmax(x, axis=-1)


def layer_norm(x: Array, gain: Array, shift: Array, eps: float = 1e-5) -> Array:
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps) * gain + shift


def embed(ids: Array, table: Array) -> Array:
    """Rows of a table at secret indices, as a product with one-hot rows: quicker in SPU than to
    gather them.
    """
    return jax.nn.one_hot(ids, table.shape[0], dtype=table.dtype) @ table


# -- whole models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Attributes:
    softmax, gelu: PUMA's or exact.
    """

    layers: int
    heads: int
    softmax: Callable[[Array], Array]
    gelu: Callable[[Array], Array]


def _attend(shape: Shape, q: Array, k: Array, v: Array, mask: Any = None) -> Array:
    """Attention of rows (tokens, hidden)."""
    size = q.shape[1] // shape.heads
    q, k, v = (x.reshape(x.shape[0], shape.heads, size).transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) * size**-0.5
    if mask is not None:
        scores = scores + mask
    y = shape.softmax(scores) @ v
    return y.transpose(1, 0, 2).reshape(q.shape[1], -1)


def bert(shape: Shape, weights: dict[str, Array], ids: Array) -> Array:
    """Logits of BertForSequenceClassification, (1, labels).

    Like ours it leaves out the rows of the last layer that nobody reads.
    """

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        name = f"{name}.LayerNorm"
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    at = "bert.embeddings"
    x = embed(ids, weights[f"{at}.word_embeddings.weight"])
    x = x + weights[f"{at}.position_embeddings.weight"][: ids.shape[0]]
    x = norm(x + weights[f"{at}.token_type_embeddings.weight"][0], at)
    for number in range(shape.layers):
        at = f"bert.encoder.layer.{number}"
        k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("key", "value"))
        if number == shape.layers - 1:
            x = x[:1]
        y = _attend(shape, linear(x, f"{at}.attention.self.query"), k, v)
        x = norm(x + linear(y, f"{at}.attention.output.dense"), f"{at}.attention.output")
        y = shape.gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(y, f"{at}.output.dense"), f"{at}.output")
    return linear(jnp.tanh(linear(x, "bert.pooler.dense")), "classifier")


def gpt2(shape: Shape, weights: dict[str, Array], ids: Array) -> Array:
    """Next-token logits of GPT2LMHeadModel, (1, vocabulary); see `bert` for the last layer."""

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    table, count = weights["transformer.wte.weight"], ids.shape[0]
    mask = jnp.where(jnp.tril(jnp.ones((count, count), dtype=bool)), 0.0, -100.0)
    x = embed(ids, table) + weights["transformer.wpe.weight"][:count]
    for number in range(shape.layers):
        at = f"transformer.h.{number}"
        q, k, v = jnp.split(linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn"), 3, axis=1)
        if number == shape.layers - 1:
            x, q, mask = x[-1:], q[-1:], mask[-1:]
        x = x + linear(_attend(shape, q, k, v, mask), f"{at}.attn.c_proj")
        y = shape.gelu(linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc"))
        x = x + linear(y, f"{at}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ table.T


MODELS = {"bert": bert, "gpt2": gpt2}


def _tanh_gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def model(given: dict[str, Any], *, exact: bool) -> Callable[..., Array]:
    """A function of weights and token ids.

    Args:
        given: the model's `config.json`.
        exact: with the activations of the checkpoint instead of PUMA's.
    """
    bert_like = given["model_type"] == "bert"
    activation = exact_gelu if bert_like else _tanh_gelu
    shape = Shape(
        given["num_hidden_layers" if bert_like else "n_layer"],
        given["num_attention_heads" if bert_like else "n_head"],
        exact_softmax if exact else puma_softmax,
        activation if exact else puma_gelu,
    )
    forward = MODELS[given["model_type"]]
    return lambda weights, ids: forward(shape, weights, ids)
