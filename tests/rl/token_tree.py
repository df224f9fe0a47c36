"""An exact oracle: every response of a small vocabulary, its probability and its return (float64).

A node of depth h is a prefix of h tokens, numbered in base A; a leaf is a whole response of H
tokens. Nothing of jaxrl_llm is used here.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tree:
  """A reference policy and the returns of its responses.

  Attributes:
    policy: for h = 0 ... H - 1: [A^h, A]; the probability of each next token.
    returns: [A^H]; of the whole responses.
  """

  policy: tuple[np.ndarray, ...]
  returns: np.ndarray

  @property
  def depth(self):
    """H."""
    return len(self.policy)

  def response_probs(self, policy=None):
    """Probability of each response under a policy, by default the reference: [A^H]."""
    probs = np.ones(1)
    for table in policy or self.policy:
      probs = (probs[:, None] * table).reshape(-1)
    return probs

  def expectations(self, values, policy=None):
    """E[values | prefix] for h = 0 ... H under a policy: [A^h] each."""
    levels = [np.asarray(values, float)]
    for table in reversed(policy or self.policy):
      levels.append((table * levels[-1].reshape(table.shape)).sum(axis=1))
    return levels[::-1]

  def soft_values(self, inv_eta):
    """V*(x) = η ln E_ref[exp(R / η) | x] for h = 0 ... H: [A^h] each; the mean for 1/η = 0."""
    if inv_eta == 0:
      return self.expectations(self.returns)
    top = self.returns.max()
    levels = self.expectations(np.exp(inv_eta * (self.returns - top)))
    return [top + np.log(level) / inv_eta for level in levels]

  def tilted(self, offsets):
    """π(y | x) ∝ π_ref(y | x) exp(offset(x, y)); offsets as `policy`."""
    tables = [np.log(table) + offset for table, offset in zip(self.policy, offsets)]
    tables = [np.exp(table - table.max(axis=1, keepdims=True)) for table in tables]
    return tuple(table / table.sum(axis=1, keepdims=True) for table in tables)

  def per_action(self, levels):
    """Values of the nodes after each token, [A^h, A] for h = 0 ... H - 1, from values by node."""
    return [level.reshape(table.shape) for level, table in zip(levels[1:], self.policy)]

  def optimal(self, inv_eta):
    """π*: the reference tilted by Q*/η."""
    return self.tilted([inv_eta * q for q in self.per_action(self.soft_values(inv_eta))])

  def kl(self, policy, other=None):
    """KL of the responses of a policy from those of another, by default the reference; nats."""
    p, q = self.response_probs(policy), self.response_probs(other)
    positive = p > 0
    return float(np.sum(p[positive] * np.log(p[positive] / q[positive])))

  def objective(self, policy, inv_eta):
    """J(π) = E_π[R] − η KL(π ‖ π_ref)."""
    return float(self.response_probs(policy) @ self.returns) - self.kl(policy) / inv_eta


def draw(seed, *, actions=3, depth=4, binary=True):
  """A random tree: rows of the reference ~ Dirichlet(1); returns 0 or 1, or uniform in [0, 1]."""
  random = np.random.default_rng(seed)
  policy = tuple(random.dirichlet(np.ones(actions), size=actions**h) for h in range(depth))
  leaves = actions**depth
  returns = random.random(leaves)
  return Tree(policy, (returns < 0.3).astype(float) if binary else returns)
