"""What latent attention remembers of a token: its latent and its one rotated key, l + a numbers for all heads.

That is what a plain memory holds for a single KV head: the key has the a channels that RoPE turns, the value is the
latent. So every layout there is serves, and only reading differs. (Multi-head latent attention: DeepSeek-V2,
arXiv:2405.04434, section 2.1; `ops/attention/mla.py` explains the two ways to read.)
"""

from typing import Any

import jax
from flax import struct

from ..errors import UserError
from ..ops import expanded_mla_attention
from ..ops.attention.mla import attend_latents, project
from ..span import Span
from . import new_cache
from .rows import Rows, by_blocks, merged
from .spec import StateSpec
from .transient import Transient


@struct.dataclass
class Latent:
    """Latents and rotated keys, held by a memory whose rows can be read (`rows.py`)."""

    memory: Any

    @staticmethod
    def empty(spec: StateSpec, l: int, a: int) -> "Latent":
        """A memory of latents [l] and rotated keys [a] in which nothing is written yet."""
        if spec.forgets:
            raise UserError(
                f"cache {spec.kind} forgets keys of single heads, but this model's heads share one latent a token; "
                "use int8 or leave it out"
            )
        return Latent(new_cache(spec, g=1, k=a, j=l))

    @staticmethod
    def of_span(latent: jax.Array, k_rope: jax.Array) -> "Latent":
        """No memory but the span's own latent [b t l] and k_rope [b t a]."""
        return Latent(Transient(k_rope[:, :, None], latent[:, :, None]))

    def append(self, latent: jax.Array, k_rope: jax.Array, at: Span) -> "Latent":
        """Write latent [b t l] and k_rope [b t a] past the committed length."""
        return Latent(self.memory.append(k_rope[:, :, None], latent[:, :, None], at))

    def attend(
        self, q_nope: jax.Array, q_rope: jax.Array, w_uk: jax.Array, w_uv: jax.Array, at: Span, *, scale: float
    ) -> tuple[jax.Array, "Latent"]:
        """Queries q_nope [b t h k], q_rope [b t h a] -> y [b t h j] and the memory; maps as in the ops."""
        (_, t, h, k), a, (_, j, l) = q_nope.shape, q_rope.shape[3], w_uv.shape
        expand = expanding_pays(t, k, a, j, l)
        q = q_nope if expand else project("bthk,hkl->bthl", q_nope, w_uk)

        def attend_block(rows: Rows) -> tuple[jax.Array, jax.Array]:
            latent, k_rope = (x[:, :, 0].astype(q.dtype) for x in (rows.v, rows.k))
            places: dict[str, Any] = {"q_pos": at.query_pos, "k_pos": rows.pos, "mask": rows.mask}
            if expand:
                maps = w_uk, w_uv
                return expanded_mla_attention(
                    q, q_rope, latent, k_rope, *maps, **places, scale=scale, return_lse=True
                )
            return attend_latents(q, q_rope, latent, k_rope, **places, scale=scale)

        row_size = len(q) * (h * (k + a) if expand else l + a)
        y, _ = merged([by_blocks(attend_block, part, at, row_size, h) for part in self.memory.parts()])
        y = y.astype(q.dtype)
        return y if expand else project("bthl,hjl->bthj", y, w_uv), self

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Latent":
        """Keep n_keep [b] tokens, those at indices keep [b m] of the span."""
        return Latent(self.memory.commit(at, keep, n_keep))


def expanding_pays(t: int, k: int, a: int, j: int, l: int) -> bool:
    """Whether t queries are enough to build keys and values for.

    Multiplications for each remembered token and head: t (k + a + j) and once l (k + j) to build them, against
    t (2l + a) on the latents. DeepSeek-V2-Lite's sizes break even at t = 171. Measured on a CPU, one query is 30 to
    100 times faster on its latents, 128 queries about equally fast, 256 twice as fast on its keys and values.
    """
    return t * (k + a + j) + l * (k + j) < t * (2 * l + a)
