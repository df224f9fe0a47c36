"""Paths in star graphs: next-token prediction falls into a shortcut that is wrong half of the time.

  3,7|0,3|7,5|0,9|9,2|2,6/0,5=   ->   0,3,7,5

A graph G(d, l) has d branches of l nodes that start in the same node, l − 1 edges each, in random
order. Given the start and the last node of one branch, the answer is that branch. After its second
node every token is determined by the edges, so that a model trained on next tokens learns to follow
them, and only the second node needs the end of the branch: it is guessed, and 1/d of the paths are
right (Bachmann and Nagarajan, 2024, arXiv 2403.06963). Zhou et al. (2025, Q#, arXiv 2502.20548)
show that a value model repairs this and that policy gradients do not.

A node is one token: a character, or, with a tokenizer of words, a number below 50. Labels and the
order of edges are random: no position or label tells the branches apart. Nothing is shared between
the sets: no graph of one, in any order of its edges, is in another.
"""

import dataclasses
import math
import pathlib

import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.data import tokenizers
from jaxrl_llm.rewards import exact_match
from jaxrl_llm.tasks import config as config_lib
from jaxrl_llm.types import Example, Task

LABELS = '0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN'  # 50, as in the released code.
_SEPARATORS = '|/='
_MAX_ATTEMPTS = 20  # Draws per requested graph before giving up.


@dataclasses.dataclass
class Config(config_lib.TextConfig):
  """Config of the task.

  Ids are 0, 1, ... over evaluation, demonstrations and training graphs. Examples also have
  'branches': d lists of l labels, the answer first.

  Attributes:
    degree: d, branches.
    length: l, nodes of a branch, the start included; at least 3. With 3 the second node follows
      from the goal by one edge, and next-token prediction learns it.
    num_labels: labels that the nodes are drawn from, at most 50.
    separators: whether there is a | between edges (a comma more if the labels are numbers).
    num_demonstrations: graphs with their path, for supervised fine-tuning.
    num_train: graphs for RL or for a value model.
    num_evaluation: held-out graphs; drawn first.
    tokenizer_dir: with a tokenizer of config or policy, such as GPT-2's, labels are numbers.
  """

  degree: int = 2
  length: int = 4
  num_labels: int = 10
  separators: bool = False
  num_demonstrations: int = 20_000
  num_train: int = 5_000
  num_evaluation: int = 1_000

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, degree=2, length=3, num_demonstrations=0, num_train=0, num_evaluation=0)
    checks.at_most(self, prefix, num_labels=len(LABELS))
    nodes = self.degree * (self.length - 1) + 1
    if self.num_labels < nodes:
      raise ValueError(
          f'{prefix}.num_labels must be at least the {nodes} nodes of a graph, got '
          f'{self.num_labels}')

  def needs_policy_tokenizer(self) -> bool:
    """See `TaskConfig.needs_policy_tokenizer`; without a tokenizer a node is a character."""
    return False

  def make(
      self,
      seed: int,
      data_dir: str | pathlib.Path = '',
      policy: config_lib.PolicyTokenizer = config_lib.FROM_SCRATCH,
  ) -> Task:
    """See `TaskConfig.make`."""
    self.validate('config.task')
    config_lib.reject_data_dir(data_dir, 'star graph')
    directory = self.resolve_tokenizer_dir(policy)
    if directory:
      checks.fixed(self, 'config.task', 'with a tokenizer', separators=True)
    tokenizer = tokenizers.load_tokenizer(directory) if directory else (
        tokenizers.CharacterTokenizer(LABELS[: self.num_labels] + _SEPARATORS))

    sizes = (self.num_evaluation, self.num_demonstrations, self.num_train)
    generator = np.random.default_rng([seed, 0])
    graphs = _distinct(generator, self, sum(sizes))
    examples = [
        _example(index, graph, generator, self, in_words=bool(directory))
        for index, graph in enumerate(graphs)]
    evaluation, demonstrations, train = (
        examples[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(3))

    first = examples[0] if examples else {'prompt': '', 'answer': ''}
    return Task(
        name=f'star_graph_{self.degree}_{self.length}',
        tokenizer=tokenizer,
        demonstrations=[example | {'response': example['answer']} for example in demonstrations],
        train=train,
        evaluation=evaluation,
        reward_fn=exact_match.exact_match,
        lenient_reward_fn=exact_match.exact_match,
        # All graphs have as many tokens.
        max_prompt_tokens=len(tokenizer.start_ids) + len(tokenizer.encode(first['prompt'])),
        max_response_tokens=len(tokenizer.encode(first['answer'])) + 1,
    )


def num_graphs(config: Config) -> int:
  """Returns the number of different graphs with a goal, in any order of the other branches."""
  nodes = config.degree * (config.length - 1) + 1
  return math.perm(config.num_labels, nodes) // math.factorial(config.degree - 1)


def _distinct(generator: np.random.Generator, config: Config, count: int) -> list[np.ndarray]:
  """Draws different graphs, each the labels of its nodes [1 + d (l − 1)], the start first.

  Raises:
    ValueError: if there are not enough.
  """
  nodes = config.degree * (config.length - 1) + 1
  if count > num_graphs(config) // 2:
    raise ValueError(
        f'config.task: all sets together must have at most half of the {num_graphs(config)} graphs '
        f'of this size, got {count}')

  graphs, seen = [], set()
  for _ in range(_MAX_ATTEMPTS):
    size = count - len(graphs)
    for labels in np.argsort(generator.random((size, config.num_labels)), axis=1)[:, :nodes]:
      goal, *others = labels[1:].reshape(config.degree, -1).tolist()
      key = (int(labels[0]), tuple(goal), tuple(sorted(map(tuple, others))))
      if key not in seen:
        seen.add(key)
        graphs.append(labels)
    if len(graphs) == count:
      return graphs
  raise ValueError(f'only {len(graphs)} of {count} different graphs could be generated')


def _example(
    index: int, labels: np.ndarray, generator: np.random.Generator, config: Config, *,
    in_words: bool,
) -> Example:
  """Makes the example of a graph, with its edges in random order."""
  def name(label: int) -> str:
    return str(label) if in_words else LABELS[label]

  start, rest = int(labels[0]), labels[1:].reshape(config.degree, -1)
  branches = [[start, *branch] for branch in rest.tolist()]
  edges = [pair for branch in branches for pair in zip(branch, branch[1:])]
  comma, bar = ',' if in_words else '', '|' if config.separators else ''
  written = [f'{name(u)}{comma}{name(v)}' for u, v in (
      edges[i] for i in generator.permutation(len(edges)))]

  goal = branches[0]
  return {
      'id': index,
      'prompt': f'{bar.join(written)}/{name(start)}{comma}{name(goal[-1])}=',
      'answer': comma.join(map(name, goal)),
      'branches': [[name(label) for label in branch] for branch in branches],
  }


def exact_prefix_value(example: Example, path: list[str]) -> float:
  """P(right) after some nodes for a reference that guesses the branch and then follows its edges.

  Args:
    example: a graph of this task.
    path: the first nodes of a response.

  Returns:
    1/d after the start, 1 on the branch of the goal, 0 elsewhere.
  """
  goal = example['branches'][0]
  if path != goal[: len(path)]:
    return 0.0
  return 1.0 if len(path) > 1 else 1 / len(example['branches'])
