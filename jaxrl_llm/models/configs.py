"""Shapes of the decoders: what can be chosen, and the sizes that were published.

Every field is consumed by the model or rejected by `validate`.
"""

import dataclasses
import math


@dataclasses.dataclass
class TransformerConfig:
  """A decoder-only transformer.

  Mutable, so that a flag can override a field; `transformer.make` takes a copy.

  Attributes:
    vocab_size: V, rows of the embedding. 0: taken from the tokenizer.
    num_layers: number of blocks.
    width: D, of the residual stream.
    num_heads: H query heads.
    num_kv_heads: key and value heads; divides `num_heads` (grouped queries).
    head_dim: width of a head; need not be D / H.
    mlp_width: F, of the feed-forward layer.
    max_length: most slots of a sequence or of a KV cache, padding included; rows of
      the learned position table. A longer input is an error when it is traced.
    norm: 'rms' or 'layer'.
    norm_epsilon: added to the variance.
    positions: 'rope' or 'learned'.
    rope_theta: base of the rotary frequencies; has to keep its default where
      positions are learned.
    activation: 'swiglu' (gated SiLU) or 'gelu' (tanh form, not gated).
    tie_embeddings: the head is the embedding.
    attention_bias: biases on the query, key and value projections.
    output_bias: biases on the attention output and both MLP projections.
    head_bias: a bias on the logits (untied heads only).
    compute_dtype: 'float32' or 'bfloat16', of the trunk's activations. Parameters
      are float32; logits and everything after them are float32.
    remat: what the backward pass recomputes: 'none', 'dots' (all but matrix
      products) or 'full' (everything inside a block).
    scan_unroll: blocks per iteration of the scan over layers; 0 unrolls all,
      which suits CPUs; 1 keeps compile time independent of the depth.
    attention_block: query positions per block; longer sequences are attended
      block by block with rematerialisation, so that no [T, T] array is kept.
  """

  vocab_size: int = 0
  num_layers: int = 2
  width: int = 128
  num_heads: int = 4
  num_kv_heads: int = 4
  head_dim: int = 32
  mlp_width: int = 384
  max_length: int = 128
  norm: str = 'rms'
  norm_epsilon: float = 1e-6
  positions: str = 'rope'
  rope_theta: float = 10_000.0
  activation: str = 'swiglu'
  tie_embeddings: bool = True
  attention_bias: bool = False
  output_bias: bool = False
  head_bias: bool = False
  compute_dtype: str = 'float32'
  remat: str = 'none'
  scan_unroll: int = 0
  attention_block: int = 512

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    for name in (
        'vocab_size', 'num_layers', 'width', 'num_heads', 'num_kv_heads', 'head_dim',
        'mlp_width', 'max_length', 'attention_block',
    ):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')
    for name, allowed in (
        ('norm', ('rms', 'layer')),
        ('positions', ('rope', 'learned')),
        ('activation', ('swiglu', 'gelu')),
        ('compute_dtype', ('float32', 'bfloat16')),
        ('remat', ('none', 'dots', 'full')),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(f'{name} must be one of {allowed}, got {getattr(self, name)!r}')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'num_kv_heads must divide num_heads ({self.num_heads}), got {self.num_kv_heads}'
      )
    if self.positions == 'rope' and self.head_dim % 2:
      raise ValueError(f'head_dim must be even for rotary positions, got {self.head_dim}')
    for name in ('rope_theta', 'norm_epsilon'):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(f'{name} must be positive and finite, got {getattr(self, name)}')
    default_theta = TransformerConfig.rope_theta
    if self.positions == 'learned' and self.rope_theta != default_theta:
      raise ValueError(
          f"rope_theta has no effect with positions='learned': leave it at {default_theta}, "
          f'got {self.rope_theta}'
      )
    if self.tie_embeddings and self.head_bias:
      raise ValueError(
          'head_bias needs an untied head (tie_embeddings=False), got True with a tied one'
      )
    if self.scan_unroll < 0 or self.num_layers % (self.scan_unroll or self.num_layers):
      raise ValueError(
          f'scan_unroll must be 0 or divide num_layers ({self.num_layers}), got {self.scan_unroll}'
      )


def reference_workload() -> TransformerConfig:
  """The 6.8M-parameter Llama-style decoder on which speed is compared (bench.py)."""
  return TransformerConfig(
      vocab_size=2048, num_layers=8, width=256, num_heads=8, num_kv_heads=4, head_dim=32,
      mlp_width=768, max_length=1024,
  )


def _qwen2(num_layers, width, num_heads, num_kv_heads, mlp_width, vocab_size, tied):
  return TransformerConfig(
      vocab_size=vocab_size, num_layers=num_layers, width=width, num_heads=num_heads,
      num_kv_heads=num_kv_heads, head_dim=128, mlp_width=mlp_width, max_length=32_768,
      norm_epsilon=1e-6, rope_theta=1e6, tie_embeddings=tied, attention_bias=True,
      compute_dtype='bfloat16', remat='full', scan_unroll=1,
  )


def qwen2_5_1_5b() -> TransformerConfig:
  """Qwen2.5-1.5B (Qwen team, 2024, arXiv 2412.15115, table 1; its config.json)."""
  return _qwen2(28, 1536, 12, 2, 8960, 151_936, True)


def qwen2_5_3b() -> TransformerConfig:
  """Qwen2.5-3B (Qwen team, 2024, arXiv 2412.15115, table 1; its config.json)."""
  return _qwen2(36, 2048, 16, 2, 11_008, 151_936, True)


def qwen2_5_7b() -> TransformerConfig:
  """Qwen2.5-7B (Qwen team, 2024, arXiv 2412.15115, table 1; its config.json)."""
  return _qwen2(28, 3584, 28, 4, 18_944, 152_064, False)
