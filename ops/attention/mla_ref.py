"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), the definition.

    k_s = W_uk c_s,   v_s = W_uv c_s                                         for each head      (eqs. 10, 11)
    y_t = sum_s softmax_s(scale * (q_nope_t . k_s + q_rope_t . k_rope_s)) v_s                   (eqs. 16 to 18)

c_s is the latent that token s left, k_rope_s the rotated key that its heads share. Which s the query t sees is
as in `attention_ref`.
"""

import numpy as np

from .ref import attention_ref


def mla_attention_ref(
    q_nope: np.ndarray,
    q_rope: np.ndarray,
    latent: np.ndarray,
    k_rope: np.ndarray,
    w_uk: np.ndarray,
    w_uv: np.ndarray,
    *,
    q_pos: np.ndarray | None = None,
    k_pos: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The definition: queries q_nope [b t h k], q_rope [b t h a] on latent [b s l], k_rope [b s a] -> float64 y.

    Maps w_uk [h k l] and w_uv [h j l]; y is [b t h j], and lse [b t h] comes with it on request. `scale` is
    1/sqrt(k + a) by default, the rest as in `attention_ref`.
    """
    k, v = up_project(latent, w_uk), up_project(latent, w_uv)
    shared = np.repeat(np.asarray(k_rope, np.float64)[:, :, None], len(w_uk), axis=2)
    return attention_ref(
        np.concatenate([q_nope, q_rope], axis=3),
        np.concatenate([k, shared], axis=3),
        v,
        q_pos=q_pos,
        k_pos=k_pos,
        mask=mask,
        causal=causal,
        scale=scale,
        return_lse=return_lse,
    )


def up_project(latent: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """latent [b s l] through weight [h x l] -> float64 [b s h x], one number at a time."""
    latent, weight = np.asarray(latent, np.float64), np.asarray(weight, np.float64)
    y = np.zeros((*latent.shape[:2], *weight.shape[:2]))
    with np.errstate(invalid="ignore"):  # rows that hold no token may be infinite
        for b, s, h, x in np.ndindex(*y.shape):
            y[b, s, h, x] = sum(weight[h, x] * latent[b, s])
    return y
