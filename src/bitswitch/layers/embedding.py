"""Switchable embeddings."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch.layers.base import SwitchableLayer


class SwitchableEmbedding(SwitchableLayer, nn.Embedding):
    """Embedding, (…) int64 → (…, embedding_dim) of the type of the weight.

    Rows are looked up first, so only those in use are rounded.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer at the active width."""
        if self.is_frozen:
            # Indexing would take negative numbers for rows from the end.
            rows = self.weight_quantizer.lower(F.embedding(input, self.codes), self.bits)
            return self.weight_quantizer.dequantize(rows, self.bits, rows=input).to(self.weight_dtype)
        rows = F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
        return rows if self._bypass else self.weight_quantizer(rows, self.bits, rows=input).to(rows.dtype)
