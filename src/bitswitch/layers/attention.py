"""Multi-head attention whose projections are layers that are called."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from bitswitch.layers.derived import derived_class


class ProjectedMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with the layers q_proj, k_proj, v_proj and out_proj.

    PyTorch's own module passes its weights to a function, so they cannot be quantized as layers are. This one computes
    the same function by calling four `torch.nn.Linear`. There are always three input projections, never a packed one:
    in cross-attention queries and keys come from different places, and each deserves its own scale and width.

    It never takes PyTorch's fast path, and says to encoder layers, which look at these attributes, that they must not.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results are those of `torch.nn.MultiheadAttention`.

        Args:
            query: (L, E) unbatched, else (N, L, E) if `batch_first`, else (L, N, E).
            key: the same with S and kdim.
            value: the same with S and vdim.
            key_padding_mask: (N, S) or (S); True, or −inf, where a key is ignored.
            need_weights: return the attention weights as well.
            attn_mask: (L, S) or (N · heads, L, S); True, or −inf, where attention is not allowed.
            average_attn_weights: average the returned weights over the heads.
            is_causal: a hint that `attn_mask` is the causal mask.

        Returns:
            The output, in the layout of `query`, and the weights (N, L, S), (N, heads, L, S), or None.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        use_hint = is_causal and key_padding_mask is None and not need_weights
        batched = query.dim() == 3
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q, k, v = (self._batch_first(x, batched) for x in (q, k, v))
        sizes = (q.shape[0], q.shape[1], k.shape[1])
        mask = None if use_hint else self._mask(attn_mask, key_padding_mask, sizes, query.dtype)
        k, v = self._with_bias(k, self.bias_k), self._with_bias(v, self.bias_v)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], 2) for x in (k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            attended, weights = _attend(q, k, v, mask, dropout)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=use_hint)
        attended = attended.transpose(1, 2).flatten(2)
        if not batched:
            attended = attended.squeeze(0)
        elif not self.batch_first:
            attended = attended.transpose(0, 1)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        return self.out_proj(attended), weights

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        """View a projection as (N, sequence, E)."""
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Append the learned extra key or value of add_bias_kv to (N, S, E)."""
        return x if bias is None else torch.cat([x, bias.expand(x.shape[0], -1, -1)], 1)

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, sizes: tuple[int, int, int], dtype: torch.dtype
    ) -> Tensor | None:
        """Merge both masks into one to add to the scores: (1, 1, L, S), (N, 1, 1, S) or (N, heads, L, S)."""
        batch, length, source = sizes
        merged = None
        if attn_mask is not None:
            expected = (length, source) if attn_mask.dim() == 2 else (batch * self.num_heads, length, source)
            if tuple(attn_mask.shape) != expected:
                raise RuntimeError(f"attn_mask has the shape {tuple(attn_mask.shape)}, but should have {expected}")
            merged = _additive(attn_mask, dtype)
            merged = merged[None, None] if attn_mask.dim() == 2 else merged.unflatten(0, (batch, self.num_heads))
        if padding is not None:
            if padding.numel() != batch * source:
                raise RuntimeError(f"key_padding_mask has the shape {tuple(padding.shape)}; keys are {batch, source}")
            added = _additive(padding, dtype).view(batch, 1, 1, source)
            merged = added if merged is None else merged + added
        extra = int(self.bias_k is not None) + int(self.add_zero_attn)
        return F.pad(merged, (0, extra)) if merged is not None and extra else merged


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Return softmax(q · kᵀ / √d + mask) · v and the softmax, for (N, heads, sequence, d)."""
    shape = q.shape[:2]
    scores = torch.bmm((q * math.sqrt(1.0 / q.shape[-1])).flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    scores = scores.unflatten(0, shape)
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    attended = torch.bmm(weights.flatten(0, 1), v.flatten(0, 1))
    return attended.unflatten(0, shape), weights


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add to scores: −inf where a boolean one is True."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    if not mask.is_floating_point():
        raise RuntimeError(f"only bool and floating types of masks are supported; got {mask.dtype}")
    return mask.to(dtype)


def why_not_attention(module: nn.Module) -> str | None:
    """Return why an attention's projections cannot be made layers, or None if they can."""
    assert isinstance(module, nn.MultiheadAttention)
    if parametrize.is_parametrized(module):
        return "its weights are computed by a parametrization; remove it first (torch.nn.utils.parametrize)"
    if type(module).forward is not nn.MultiheadAttention.forward:
        return f"{type(module).__name__} overrides the forward of MultiheadAttention"
    names = ("in_proj_weight",) if module._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    if any(module._parameters.get(name) is None for name in names):
        return "its weights are not plain parameters"
    return None


@torch.no_grad()
def project(attention: nn.Module) -> None:
    """Change an `nn.MultiheadAttention` in place into a `ProjectedMultiheadAttention` of the same function."""
    assert isinstance(attention, nn.MultiheadAttention)
    parameters = attention._parameters
    if attention._qkv_same_embed_dim:
        packed = parameters["in_proj_weight"]
        assert packed is not None
        weights = [(part, packed.requires_grad) for part in packed.chunk(3)]
    else:
        weights = [(w, w.requires_grad) for w in (parameters[f"{n}_proj_weight"] for n in "qkv") if w is not None]
    bias = parameters["in_proj_bias"]
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    for name, (weight, trainable), part in zip("qkv", weights, biases, strict=True):
        # On the meta device nothing is initialised that would be overwritten, and no random number is drawn.
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=part is not None, device="meta")
        linear.weight = nn.Parameter(weight.detach().clone(), trainable)
        if part is not None and bias is not None:
            linear.bias = nn.Parameter(part.detach().clone(), bias.requires_grad)
        attention.register_module(f"{name}_proj", linear.train(attention.training))
    for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        attention.register_parameter(name, None)
    attention._qkv_same_embed_dim = False
    output: nn.Module = attention.out_proj
    if type(output) is NonDynamicallyQuantizableLinear:
        output.__class__ = nn.Linear  # pyright: ignore[reportAttributeAccessIssue]
    attention.__class__ = _projected_class(type(attention))


def _projected_class(kind: type[nn.Module]) -> type[ProjectedMultiheadAttention]:
    """Return the class for an attention class or a subclass that keeps its forward."""
    if kind is nn.MultiheadAttention:
        return ProjectedMultiheadAttention
    return derived_class(ProjectedMultiheadAttention, kind, f"Projected{kind.__name__}")


def avoid_fast_path(module: nn.Module) -> None:
    """Make a transformer encoder, or one of its layers, call its layers in evaluation mode as it does in training."""
    if isinstance(module, nn.TransformerEncoderLayer):
        # Only its fast path reads this attribute, and 0 means that there is none for the activation function.
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
