"""Attention heads as groups of channels, and an attention layer with fewer heads.

In nn.MultiheadAttention heads * head_dim must be the embedding width; in `FewerHeads` it can be smaller.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.topology.channels import Group, Slice


class FewerHeads(nn.MultiheadAttention):
    """nn.MultiheadAttention with some heads removed: the same call and the same parameter names.

    Made from a layer by `use_fewer_heads`, before its parameters get their smaller shapes. Returns None for the attention
    weights, whose mean over heads would differ from the original layer's.
    """

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
    ) -> tuple[Tensor, None]:
        """As nn.MultiheadAttention.forward; `attn_mask` is (length, length), the same for all heads."""
        turned = query.dim() == 3 and not self.batch_first
        inputs = [tensor.transpose(0, 1) if turned else tensor for tensor in (query, key, value)]  # (batch, length, width)
        packed: Tensor | None = self.in_proj_weight
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if packed is None else packed.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)  # (batch, heads, length, head_dim)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        mask = None if attn_mask is None else _added(attn_mask, q)
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q)[..., None, None, :]
            mask = padding if mask is None else mask + padding
        out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out = self.out_proj(out.transpose(-2, -3).flatten(-2))
        return out.transpose(0, 1) if turned else out, None


def use_fewer_heads(layer: nn.MultiheadAttention) -> None:
    """Turn an attention layer into `FewerHeads`, in place."""
    layer.__class__ = FewerHeads
    layer._qkv_same_embed_dim = False  # nn.TransformerEncoderLayer then calls the layer, without its fused fast path


def without_nested_tensors(net: nn.Module) -> None:
    """Let encoders with such layers, or with others that torch's fused operation does not read, pass plain tensors on."""
    for module in net.modules():
        if isinstance(module, nn.TransformerEncoder) and not all(map(_can_be_fused, module.layers)):
            module.use_nested_tensor = False


def _can_be_fused(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.TransformerEncoderLayer):
        return False
    return not isinstance(layer.self_attn, FewerHeads) and bool(layer.activation_relu_or_gelu)


def heads(net: nn.Module) -> tuple[list[Group], Mapping[str, str]]:
    """A group for every attention layer with several heads; and reasons why others cannot be removed, by name."""
    groups, reasons = list[Group](), dict[str, str]()
    for path, layer in net.named_modules():
        if isinstance(layer, nn.MultiheadAttention) and layer.num_heads > 1:
            group = _heads_of(layer, f"{path}." if path else "")
            if layer.bias_k is not None or layer.add_zero_attn:
                reasons[group.name] = "its heads attend to more than its inputs (add_bias_kv or add_zero_attn)"
            else:
                groups.append(group)
    return groups, reasons


def _heads_of(layer: nn.MultiheadAttention, prefix: str) -> Group:
    inner = layer.num_heads * layer.head_dim
    rows = torch.arange(inner).view(layer.num_heads, layer.head_dim)
    packed = torch.cat([rows, rows + inner, rows + 2 * inner], 1)  # rows of q, then k, then v
    if layer._parameters["in_proj_weight"] is not None:
        computing = [("in_proj_weight", packed)]
    else:
        computing = [("q_proj_weight", rows), ("k_proj_weight", rows), ("v_proj_weight", rows)]
    if layer.in_proj_bias is not None:
        computing.append(("in_proj_bias", packed))
    slices = [Slice(prefix + name, 0, index, False) for name, index in computing]
    return Group(slices[0].tensor, layer.num_heads, (*slices, Slice(f"{prefix}out_proj.weight", 1, rows, True)))


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """An attention mask as an additive one: a bool mask (True: not attended) becomes 0 and -inf."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
