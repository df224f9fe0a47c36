"""A reference decoder in plain NumPy loops, float64.

One row, no padding, no cache, one head at a time. Slow and obvious on purpose.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


def normalise(config, params, x):
  """RMSNorm or LayerNorm of the vectors x [T, D]."""
  out = []
  for vector in x:
    if config.norm == 'layer':
      vector = vector - vector.mean()
    vector = vector / np.sqrt((vector**2).mean() + config.norm_epsilon)
    vector = vector * (params['scale'] + (config.norm == 'rms_plus_one'))
    out.append(vector + params['bias'] if config.norm == 'layer' else vector)
  return np.array(out)


def linear(params, x):
  """Applies a kernel [in, out] and a bias, if there is one, to x [T, in]."""
  return x @ params['kernel'] + params.get('bias', 0.0)


def rotate(vector, position, theta, config=None):
  """Rotates the pairs (v_i, v_{i + r/2}) by the angles position · f_i; the rest is unchanged.

  f_i = θ^(-2i/r), stretched according to the config's rope_scaling; r dimensions are rotated.
  """
  size = len(vector) if config is None else int(len(vector) * config.rope_fraction)
  out = np.array(vector)

  for i in range(size // 2):
    frequency = theta ** (-2 * i / size)
    if config is not None and config.rope_scaling == 'linear':
      frequency /= config.rope_factor
    elif config is not None and config.rope_scaling == 'llama3':
      turns = config.rope_original_length / (2 * np.pi / frequency)
      low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
      if turns < low:
        frequency /= config.rope_factor
      elif turns <= high:
        share = (turns - low) / (high - low)
        frequency = share * frequency + (1 - share) * frequency / config.rope_factor

    angle = position * frequency
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    out[[i, i + size // 2]] = turn @ vector[[i, i + size // 2]]
  return out


def attend(query, key, value, query_slots, valid, *, window=None, scale=None, softcap=0.0,
           segments=None):
  """Causal attention of one sequence: [T, H, h], [S, KV, h], [S, KV, h] -> [T, H, h]."""
  num_queries, num_heads, head_dim = query.shape
  group = num_heads // key.shape[1]
  factor = 1 / np.sqrt(head_dim) if scale is None else scale
  out = np.zeros((num_queries, num_heads, head_dim))

  for t in range(num_queries):
    visible = [s for s in range(len(key)) if s <= query_slots[t] and valid[s]]
    if window is not None:
      visible = [s for s in visible if query_slots[t] - s < window]
    if segments is not None:
      visible = [s for s in visible if segments[s] == segments[query_slots[t]]]

    for head in range(num_heads):
      scores = np.array([query[t, head] @ key[s, head // group] * factor for s in visible])
      if softcap:
        scores = softcap * np.tanh(scores / softcap)
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      out[t, head] = sum(w * value[s, head // group] for w, s in zip(weights, visible))

  return out


def feed_forward(config, params, x):
  """The feed-forward layer, gated or not."""
  sigmoid = lambda y: 1 / (1 + np.exp(-y))
  tanh_gelu = lambda y: 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
  up = linear(params['up'], x)

  if config.activation == 'swiglu':
    gate = linear(params['gate'], x)
    hidden = gate * sigmoid(gate) * up
  elif config.activation == 'geglu':
    hidden = tanh_gelu(linear(params['gate'], x)) * up
  elif config.activation == 'gelu':
    hidden = tanh_gelu(up)
  elif config.activation == 'relu':
    hidden = np.maximum(up, 0)
  else:
    hidden = up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2)))
  return linear(params['down'], hidden)


def mix(config, params, x, *, sliding):
  """Self-attention of x [T, D] with positions 0, 1, ..."""
  split = lambda y, heads: y.reshape(len(x), heads, config.head_dim)
  query = split(linear(params['query'], x), config.num_heads)
  key = split(linear(params['key'], x), config.num_kv_heads)
  value = split(linear(params['value'], x), config.num_kv_heads)

  if config.qk_norm:
    query = np.array([normalise(config, params['query_norm'], heads) for heads in query])
    key = np.array([normalise(config, params['key_norm'], heads) for heads in key])

  if config.positions == 'rope':
    local = sliding and config.rope_local_theta
    theta = config.rope_local_theta if local else config.rope_theta
    scaled = dataclasses.replace(config, rope_scaling='none') if local else config
    turn = lambda y: np.array(
        [[rotate(head, t, theta, scaled) for head in heads] for t, heads in enumerate(y)])
    query, key = turn(query), turn(key)

  out = attend(
      query, key, value, np.arange(len(x)), np.ones(len(x), bool),
      window=config.sliding_window if sliding else None, scale=config.query_scale or None,
      softcap=config.attention_softcap)
  return linear(params['output'], out.reshape(len(x), -1))


def forward(config, params, tokens):
  """Returns hidden states [T, D] after the last norm and logits [T, V] of tokens [T]."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  embedder = params['embedder']
  x = embedder['embedding'][tokens]
  if config.positions == 'learned':
    x = x + embedder['position_embedding'][: len(tokens)]
  if config.embedding_scale:
    x = x * np.sqrt(config.width)

  for i in range(config.num_layers):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], params['layers'])
    norm = lambda name, y: normalise(config, layer[name], y)  # noqa: B023
    after = lambda name, y: norm(name, y) if config.post_norms else y  # noqa: B023

    sliding = config.layer_pattern and config.layer_pattern[i % len(config.layer_pattern)] == 's'
    mixed = mix(config, layer['attention'], norm('attention_norm', x), sliding=sliding)
    before = x
    x = x + after('attention_post_norm', mixed)
    y = feed_forward(
        config, layer['mlp'], norm('mlp_norm', before if config.parallel_residual else x))
    x = x + after('mlp_post_norm', y)

  hidden = normalise(config, params['final_norm'], x)
  kernel = embedder['embedding'] if config.tie_embeddings else params['head']['kernel']
  logits = hidden @ kernel.T + params.get('head', {}).get('bias', 0.0)
  cap = config.logit_softcap
  return hidden, cap * np.tanh(logits / cap) if cap else logits


def draw_params(model, seed=0):
  """Random parameters of a model, including norm scales and biases, large enough to matter.

  The model's initialiser is not run, which would take a second per model.
  """
  return randomise(jax.eval_shape(model.init, jax.random.key(0)), seed)


def randomise(params, seed=0):
  """Draws every leaf (an array or its shape) again."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    spread = {'scale': 0.3, 'bias': 0.3}.get(name, 2.0 / np.sqrt(leaf.shape[-1]))
    centre = 1.0 if name == 'scale' else 0.0
    return jnp.asarray(centre + spread * rng.standard_normal(leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, params)
