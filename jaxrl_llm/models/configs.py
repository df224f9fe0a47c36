"""Configs of the decoders, and the published sizes.

Every field is consumed by the model or rejected by `validate`.
"""

import dataclasses
import math

from jaxrl_llm import checks

# Activations of feed-forward layers with a gate next to the up projection, and without one.
GATED = ('swiglu', 'geglu')
NOT_GATED = ('gelu', 'gelu_exact', 'relu')
# Fields that change how a model is computed and stored, but not its function.
COMPUTE_FIELDS = ('param_dtype', 'compute_dtype', 'remat', 'scan_unroll', 'attention_block')
DTYPES = ('float32', 'bfloat16')
MOST_UNROLLED = 2**20  # Largest number of weights of a block that `scan_unroll=0` unrolls.
MAX_LAYERS = 10_000  # The list of more layers would exhaust memory by itself.
MAX_LENGTH = 2**31 - 1  # Positions are int32.


@dataclasses.dataclass
class TransformerConfig:
  """A decoder-only transformer.

  Mutable, so that a flag can override a field; `transformer.make` takes a copy.

  Attributes:
    vocab_size: V, rows of the embedding. 0: taken from the tokenizer.
    num_layers: number of blocks.
    width: D, width of the residual stream.
    num_heads: H, number of query heads.
    num_kv_heads: number of key and value heads; divides `num_heads` (grouped queries).
    head_dim: width of a head; need not be D / H.
    mlp_width: F, width of the feed-forward layer.
    max_length: maximum number of slots in a sequence or KV cache, including padding; rows of
      the learned position table. A longer input raises an error at trace time.
    norm: 'rms', 'rms_plus_one' (the weight is 1 + the parameter, as in Gemma) or 'layer'.
    norm_epsilon: added to the variance.
    post_norms: also normalise the outputs of attention and feed-forward, before they are
      added to the residual stream (Gemma 2 and 3).
    qk_norm: normalise each head's query and key before rotation.
    parallel_residual: attention and feed-forward read the same residual stream, and
      are added together (GPT-NeoX).
    positions: 'rope' or 'learned'. The rope_* fields must keep their defaults if
      positions are learned.
    rope_theta: base of the rotary frequencies.
    rope_local_theta: base of the rotary frequencies in sliding layers; 0: `rope_theta`. If
      this is set, scaling applies to the full layers only (Gemma 3).
    rope_fraction: fraction of each head that is rotated, from its first dimension on.
    rope_scaling: 'none', 'linear' (positions divided by the factor) or 'llama3'.
    rope_factor: scaling factor; 1 if there is no scaling.
    rope_low_freq_factor: llama3: wavelengths longer than the original length divided by this
      are stretched by the full factor. 0 for other scalings, as are the next two fields.
    rope_high_freq_factor: llama3: wavelengths shorter than the original length divided by
      this are unchanged.
    rope_original_length: llama3: context length before stretching, in tokens.
    sliding_window: number of keys that a token of a sliding layer sees, including its own;
      0 if there are no sliding layers.
    layer_pattern: kind of each layer: letters 'f' (full) and 's' (sliding),
      repeated over the layers ('sf' for Gemma 2); '' if all are full.
    query_scale: factor on query times key; 0 is 1 / sqrt(head_dim).
    attention_softcap: attention scores z become c tanh(z / c); 0 is off.
    logit_softcap: the same for the logits; 0 is off.
    embedding_scale: multiply embeddings by sqrt(D) (Gemma).
    activation: gated: 'swiglu' (SiLU), 'geglu' (tanh GELU); not gated: 'gelu' (tanh
      form), 'gelu_exact' or 'relu'.
    tie_embeddings: use the embedding as the head.
    attention_bias: biases on the query, key and value projections.
    output_bias: a bias on the attention output.
    mlp_bias: biases on the projections of the feed-forward layer.
    head_bias: a bias on the logits (untied heads only).
    param_dtype: dtype of the parameters, 'float32' or 'bfloat16'.
    compute_dtype: dtype of the trunk's activations, 'float32' or 'bfloat16'. Logits and
      everything after them are float32.
    remat: recomputation in the backward pass: 'none', 'dots' (all but matrix
      products) or 'full' (everything inside a block).
    scan_unroll: blocks per iteration of the scan over layers; 1 keeps compile time independent
      of the depth. 0 unrolls all blocks of at most 2^20 weights, which suits CPUs, and is 1 for
      larger ones: unrolled, these compile four times longer, sample at half the speed (all
      weights are copied out of their stack) and use six times the memory with remat='full'
      (SmolLM2-135M on two busy cores).
    attention_block: query positions per block; longer sequences are attended
      block by block with rematerialisation, so that no [T, T] array is stored.
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
  post_norms: bool = False
  qk_norm: bool = False
  parallel_residual: bool = False
  positions: str = 'rope'
  rope_theta: float = 10_000.0
  rope_local_theta: float = 0.0
  rope_fraction: float = 1.0
  rope_scaling: str = 'none'
  rope_factor: float = 1.0
  rope_low_freq_factor: float = 0.0
  rope_high_freq_factor: float = 0.0
  rope_original_length: int = 0
  sliding_window: int = 0
  layer_pattern: str = ''
  query_scale: float = 0.0
  attention_softcap: float = 0.0
  logit_softcap: float = 0.0
  embedding_scale: bool = False
  activation: str = 'swiglu'
  tie_embeddings: bool = True
  attention_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  head_bias: bool = False
  param_dtype: str = 'float32'
  compute_dtype: str = 'float32'
  remat: str = 'none'
  scan_unroll: int = 0
  attention_block: int = 512

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, '', vocab_size=1, num_layers=1, width=1, num_heads=1, num_kv_heads=1, head_dim=1,
        mlp_width=1, max_length=1, attention_block=1, scan_unroll=0)
    checks.at_most(self, '', num_layers=MAX_LAYERS, max_length=MAX_LENGTH)
    checks.one_of(
        self, '', norm=('rms', 'rms_plus_one', 'layer'), positions=('rope', 'learned'),
        rope_scaling=('none', 'linear', 'llama3'), activation=(*GATED, *NOT_GATED),
        param_dtype=DTYPES, compute_dtype=DTYPES, remat=('none', 'dots', 'full'))

    checks.positive(self, '', 'rope_theta', 'norm_epsilon')
    checks.non_negative(
        self, '', 'query_scale', 'attention_softcap', 'logit_softcap', 'rope_local_theta')
    checks.divisible(self, '', 'num_heads', self.num_kv_heads, 'num_kv_heads')
    if self.scan_unroll:
      checks.divisible(self, '', 'num_layers', self.scan_unroll, 'scan_unroll')

    self._validate_rope()
    self._validate_layers()

    if self.tie_embeddings and self.head_bias:
      raise ValueError(
          'head_bias needs an untied head (tie_embeddings=False), got True with a tied one'
      )

  def _validate_rope(self) -> None:
    """Raises ValueError for a rotary field that is out of range or would be ignored."""
    if self.positions == 'learned':
      checks.fixed(self, '', "with positions='learned'", **_defaults(_ROPE_FIELDS))
      return

    unread = _defaults(_NOT_READ_BY[self.rope_scaling])
    checks.fixed(self, '', f'with rope_scaling={self.rope_scaling!r}', **unread)

    checks.interval(self, '', '(0, 1]', 'rope_fraction')
    if self.rotary_dim % 2 or not self.rotary_dim:
      raise ValueError(
          f'head_dim must be even for rotary positions, got {self.rotary_dim} rotated dimensions '
          f'of head_dim {self.head_dim}'
      )
    if self.rope_scaling != 'none':
      checks.at_least(self, '', rope_factor=1)
      checks.finite(self, '', 'rope_factor')

    if self.rope_scaling == 'llama3':
      if not 0 < self.rope_low_freq_factor < self.rope_high_freq_factor < math.inf:
        raise ValueError(
            'rope_low_freq_factor must be positive and below rope_high_freq_factor '
            f'({self.rope_high_freq_factor}), got {self.rope_low_freq_factor}'
        )
      checks.at_least(self, '', rope_original_length=1)

  def _validate_layers(self) -> None:
    """Raises ValueError unless `sliding_window` and `layer_pattern` agree."""
    if set(self.layer_pattern) - set('fs') or len(self.layer_pattern) > self.num_layers:
      raise ValueError(
          "layer_pattern must consist of letters 'f' (full) and 's' (sliding), at most num_layers "
          f'({self.num_layers}) of them, got {self.layer_pattern!r}'
      )
    if self.sliding_window < 0 or bool(self.sliding_window) != any(self.sliding_layers):
      raise ValueError(
          'sliding_window must be positive where layer_pattern has sliding layers, and 0 where it '
          f'has none, got {self.sliding_window} with {self.layer_pattern!r}'
      )
    if self.rope_local_theta and not any(self.sliding_layers):
      raise ValueError(
          'rope_local_theta needs sliding layers (layer_pattern), got '
          f'{self.rope_local_theta} without any'
      )

  @property
  def sliding_layers(self) -> tuple[bool, ...]:
    """True for each layer whose attention is limited to the window."""
    pattern = self.layer_pattern or 'f'
    return tuple(pattern[i % len(pattern)] == 's' for i in range(self.num_layers))

  @property
  def weights_per_block(self) -> int:
    """Number of entries of a block's matrices, without norms and biases."""
    attention = 2 * self.width * self.head_dim * (self.num_heads + self.num_kv_heads)
    feed_forward = (3 if self.activation in GATED else 2) * self.width * self.mlp_width
    return attention + feed_forward

  @property
  def blocks_per_iteration(self) -> int:
    """Blocks per iteration of the scan over layers; `num_layers` if it is unrolled."""
    if self.scan_unroll:
      return self.scan_unroll
    return self.num_layers if self.weights_per_block <= MOST_UNROLLED else 1

  @property
  def rotary_dim(self) -> int:
    """Number of rotated dimensions per head."""
    return int(self.head_dim * self.rope_fraction)


_ROPE_FIELDS = tuple(
    field.name for field in dataclasses.fields(TransformerConfig)
    if field.name.startswith('rope_')
)
# The rope_* fields that each kind of scaling ignores.
_LLAMA3_FIELDS = ('rope_low_freq_factor', 'rope_high_freq_factor', 'rope_original_length')
_NOT_READ_BY = {'none': ('rope_factor', *_LLAMA3_FIELDS), 'linear': _LLAMA3_FIELDS, 'llama3': ()}


def _defaults(names: tuple[str, ...]) -> dict[str, float | str]:
  """Returns default values by field name."""
  return {name: getattr(TransformerConfig, name) for name in names}


def reference_workload() -> TransformerConfig:
  """The 6.8M-parameter Llama-style decoder used for speed comparisons (bench.py)."""
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
