"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): remember one small vector a token.

Each token leaves a latent c [l], from which all heads' keys and values are linear maps, and one rotated key
[a] (a for angle: the channels that RoPE turns) that all heads share. Per head h:

    k_s = W_uk c_s,   v_s = W_uv c_s                                                        (eqs. 10, 11)
    y_t = sum_s softmax_s(scale * (q_nope_t . k_s + q_rope_t . k_rope_s)) v_s               (eqs. 16 to 18)

`expanded_mla_attention` does just that. `absorbed_mla_attention` moves both maps to the other side,

    q . (W_uk c) = (W_uk^T q) . c        sum_s p_s W_uv c_s = W_uv sum_s p_s c_s

so that decoding reads l + a numbers a token, not (k + a + j) h: it is multi-query attention whose one key is
[c, k_rope] and whose one value is c. W_uk and W_uv are stored as in DeepSeek's `kv_b_proj`, output first.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .naive import average, naive_attention
from .scores import only_tokens, positions, scores, visible

SHAPES = (
    "q_nope: b t h k float, q_rope: b t h a float, latent: b s l float, k_rope: b s a float, "
    "w_uk: h k l float, w_uv: h j l float, q_pos: b t int, k_pos: b s int, mask: b t s bool"
)


@shaped(SHAPES)
def expanded_mla_attention(
    q_nope: jax.Array,
    q_rope: jax.Array,
    latent: jax.Array,
    k_rope: jax.Array,
    w_uk: jax.Array,
    w_uv: jax.Array,
    *,
    q_pos: jax.Array | None = None,
    k_pos: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Arguments, result and errors as in `absorbed_mla_attention`; builds every head's keys and values."""
    q_pos, k_pos = positions("expanded_mla_attention", q_nope, latent, q_pos, k_pos)
    k = project("bsl,hkl->bshk", latent, w_uk)
    k_rope = jnp.broadcast_to(k_rope[:, :, None], (*k.shape[:3], k_rope.shape[2]))
    return naive_attention(
        jnp.concatenate([q_nope, q_rope], axis=3),
        jnp.concatenate([k, k_rope], axis=3),
        project("bsl,hjl->bshj", latent, w_uv),
        q_pos=q_pos,
        k_pos=k_pos,
        mask=mask,
        causal=causal,
        scale=scale,
        return_lse=return_lse,
    )


@shaped(SHAPES)
def absorbed_mla_attention(
    q_nope: jax.Array,
    q_rope: jax.Array,
    latent: jax.Array,
    k_rope: jax.Array,
    w_uk: jax.Array,
    w_uv: jax.Array,
    *,
    q_pos: jax.Array | None = None,
    k_pos: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Queries q_nope [b t h k], q_rope [b t h a] on latent [b s l], k_rope [b s a] -> y [b t h j], lse [b t h].

    Maps w_uk [h k l] and w_uv [h j l]; rotations are already applied. y in q_nope's dtype, lse in float32 or
    wider and on request only. The rest as in `attention_ref`, with `scale` = 1/sqrt(k + a) by default.
    ValueError if q_pos is left out with t > s.
    """
    q_pos, k_pos = positions("absorbed_mla_attention", q_nope, latent, q_pos, k_pos)
    q_latent = project("bthk,hkl->bthl", q_nope, w_uk)
    scale = (q_nope.shape[3] + q_rope.shape[3]) ** -0.5 if scale is None else scale
    y, lse = attend_latents(
        q_latent, q_rope, latent, k_rope, q_pos=q_pos, k_pos=k_pos, mask=mask, causal=causal, scale=scale
    )
    y = project("bthl,hjl->bthj", y.astype(q_nope.dtype), w_uv)
    return (y, lse) if return_lse else y


def attend_latents(
    q_latent: jax.Array,
    q_rope: jax.Array,
    latent: jax.Array,
    k_rope: jax.Array,
    *,
    q_pos: jax.Array,
    k_pos: jax.Array,
    mask: jax.Array | None = None,
    causal: bool = True,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Between the two maps: q_latent [b t h l], q_rope [b t h a] -> mean latents [b t h l], lse [b t h]."""
    seen = visible(q_pos, k_pos, causal=causal, window=None, mask=mask, q_segment=None, k_segment=None)

    # Two sums, for one of [c, k_rope] would first copy all of the memory.
    def part(q: jax.Array, k: jax.Array) -> jax.Array:
        return scores(q, k[:, :, None], q_pos, k_pos, seen, scale=1.0, softcap=None)

    score = scale * (part(q_latent, latent) + part(q_rope, k_rope))
    return average(score, only_tokens(latent[:, :, None], k_pos))


def project(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """An einsum in float32 or wider, rounded to x's dtype, in which the memory is then read."""
    wide = np.promote_types(x.dtype, np.float32)  # operands, too: XLA's CPU lacks some bfloat16 products
    return jnp.einsum(equation, x.astype(wide), weight.astype(wide)).astype(x.dtype)
