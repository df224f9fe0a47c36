"""A decoder in plain NumPy loops, float64: what the models are compared with.

One row, no padding, no cache, one head at a time. Slow and obvious on purpose.
"""

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
    vector = vector * params['scale']
    out.append(vector + params['bias'] if config.norm == 'layer' else vector)
  return np.array(out)


def linear(params, x):
  """Takes x [T, in] through a kernel [in, out] and a bias where there is one."""
  return x @ params['kernel'] + params.get('bias', 0.0)


def rotate(vector, position, theta):
  """Turns (v_i, v_{i + h/2}) by the angle position · θ^(-2i/h), pair by pair."""
  half = len(vector) // 2
  out = np.zeros_like(vector)
  for i in range(half):
    angle = position * theta ** (-2 * i / len(vector))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    out[[i, i + half]] = turn @ vector[[i, i + half]]
  return out


def attend(query, key, value, query_slots, valid):
  """Causal attention of one sequence: [T, H, h], [S, KV, h], [S, KV, h] -> [T, H, h]."""
  num_queries, num_heads, head_dim = query.shape
  group = num_heads // key.shape[1]
  out = np.zeros((num_queries, num_heads, head_dim))
  for t in range(num_queries):
    for head in range(num_heads):
      seen = [s for s in range(len(key)) if s <= query_slots[t] and valid[s]]
      scores = np.array(
          [query[t, head] @ key[s, head // group] / np.sqrt(head_dim) for s in seen])
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      out[t, head] = sum(w * value[s, head // group] for w, s in zip(weights, seen))
  return out


def feed_forward(config, params, x):
  """SwiGLU, or the tanh form of GELU."""
  up = linear(params['up'], x)
  if config.activation == 'swiglu':
    gate = linear(params['gate'], x)
    hidden = gate / (1 + np.exp(-gate)) * up
  else:
    hidden = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
  return linear(params['down'], hidden)


def forward(config, params, tokens):
  """Hidden states [T, D] after the last norm and logits [T, V] of one row of tokens [T]."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  embedder = params['embedder']
  x = embedder['embedding'][tokens]
  if config.positions == 'learned':
    x = x + embedder['position_embedding'][: len(tokens)]
  for i in range(config.num_layers):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], params['layers'])
    normed = normalise(config, layer['attention_norm'], x)
    split = lambda y, heads: y.reshape(len(tokens), heads, config.head_dim)
    query = split(linear(layer['attention']['query'], normed), config.num_heads)
    key = split(linear(layer['attention']['key'], normed), config.num_kv_heads)
    value = split(linear(layer['attention']['value'], normed), config.num_kv_heads)
    if config.positions == 'rope':
      turn = lambda y: np.array(
          [[rotate(head, t, config.rope_theta) for head in heads] for t, heads in enumerate(y)])
      query, key = turn(query), turn(key)
    slots = np.arange(len(tokens))
    mixed = attend(query, key, value, slots, np.ones(len(tokens), bool))
    x = x + linear(layer['attention']['output'], mixed.reshape(len(tokens), -1))
    x = x + feed_forward(config, layer['mlp'], normalise(config, layer['mlp_norm'], x))
  hidden = normalise(config, params['final_norm'], x)
  if config.tie_embeddings:
    return hidden, hidden @ embedder['embedding'].T
  return hidden, hidden @ params['head']['kernel'].T + params['head'].get('bias', 0.0)


def draw_params(model, seed=0):
  """Parameters of a model's shapes, norm scales and biases included, large enough to matter.

  Nothing of the model's own initialiser is run, which would cost a second a model.
  """
  return randomise(jax.eval_shape(model.init, jax.random.key(0)), seed)


def randomise(params, seed=0):
  """Every leaf (an array or its shape) drawn anew."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    spread = {'scale': 0.3, 'bias': 0.3}.get(name, 2.0 / np.sqrt(leaf.shape[-1]))
    centre = 1.0 if name == 'scale' else 0.0
    return jnp.asarray(centre + spread * rng.standard_normal(leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, params)
