"""What an iteration costs by formula: floating-point operations and the bytes of a KV cache.

Counted are matrix products, two operations for a multiplication with its addition. Everything
else (norms, softmax, the optimizer, noise) is below 2 % of it at any useful width, which
tests/experiments/cost_test.py holds against XLA's own count. Attention is counted as it is
computed here: every query of a block with every slot, those that the mask hides included.

Shapes: P prompts, K samples a prompt, B = P*K rows, L prompt slots, T response slots, D width,
V vocabulary.
"""

import dataclasses
import math
from typing import Any

from jaxrl_llm.models import configs

# The parts of an iteration, in the order in which they are computed.
PARTS = ('sample', 'reference', 'old', 'critic', 'update')


@dataclasses.dataclass
class Workload:
  """One iteration's size, and the devices that share it.

  Attributes:
    prompts: P of an iteration.
    minibatch_prompts: of an optimizer step.
    prompt_tokens: L.
    response_tokens: T; every response is taken to be as long as it may be.
    stage1_epochs: epochs over which A*-PO's stage 1 is spread: each prompt comes once an epoch.
    devices: over which parameters and rows are cut (mesh axis fsdp).
  """

  prompts: int
  minibatch_prompts: int
  prompt_tokens: int
  response_tokens: int
  stage1_epochs: int
  devices: int

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ValueError(
            f'{field.name} must be at least 1, got {getattr(self, field.name)} (config.workload)')
    for whole, part in (('prompts', 'minibatch_prompts'), ('minibatch_prompts', 'devices')):
      if getattr(self, whole) % getattr(self, part):
        raise ValueError(
            f'{part} must divide {whole} ({getattr(self, whole)}), got {getattr(self, part)} '
            '(config.workload)')


@dataclasses.dataclass
class Layout:
  """How much is computed at a time.

  Attributes:
    title: one line for the table.
    remat: `TransformerConfig.remat` of the backward pass.
    sequences: rows a device and micro-batch; 0 takes one prompt with all of its samples.
  """

  title: str
  remat: str
  sequences: int

  def apply_to(self, model: configs.TransformerConfig) -> configs.TransformerConfig:
    """The model, rematerialised as the layout says."""
    return dataclasses.replace(model, remat=self.remat)

  def micro_batches(self, workload: Workload, samples: int) -> int:
    """Micro-batches of one optimizer step.

    Raises:
      ValueError: the samples of a prompt, or the prompts of a micro-batch, do not fit.
    """
    sequences = self.sequences or samples
    parts, rest = divmod(workload.minibatch_prompts * samples, workload.devices * sequences)
    if sequences % samples or rest:
      raise ValueError(
          f'a micro-batch of {sequences} sequences a device does not hold whole prompts of '
          f'{samples} samples, or does not divide {workload.minibatch_prompts} prompts over '
          f'{workload.devices} devices (config.layouts)')
    return parts


@dataclasses.dataclass
class Recipe:
  """An algorithm, and what an iteration of it computes.

  Attributes:
    label: for tables.
    module: of jaxrl_llm/algorithms.
    options: fields of its Config that differ from the defaults; samples, micro-batches apart.
    samples: K.
    published: the method's name in the rows of `tables.reference`; '' if it has none there.
    reference: whether π_ref scores the samples.
    old: whether π_t scores them before the first step.
    critic: whether there is a value function; it scores them before the first step too.
    aux: names of the arrays [P] that its batch needs besides.
    stage1_samples: N of each prompt, drawn once from π_ref.
  """

  label: str
  module: Any
  options: dict[str, Any]
  samples: int
  published: str = ''
  reference: bool = True
  old: bool = True
  critic: bool = False
  aux: tuple[str, ...] = ()
  stage1_samples: int = 0

  def config(self, num_micro_batches: int) -> Any:
    """The algorithm's config."""
    options = {**self.options, 'num_micro_batches': num_micro_batches}
    if not self.stage1_samples:  # Its own field of that name is N there.
      options['samples_per_prompt'] = self.samples
    return self.module.Config(**options)


@dataclasses.dataclass
class Study:
  """What the tool works on: see experiments/configs/cost.py.

  Attributes:
    name: of the setting.
    models: networks by size; policy, reference and critic all have that shape.
    workload: of an iteration.
    layouts: by name; flops are those of the first one.
    recipes: by algorithm.
    note: where the numbers come from.
  """

  name: str
  models: dict[str, configs.TransformerConfig]
  workload: Workload
  layouts: dict[str, Layout]
  recipes: dict[str, Recipe]
  note: str

  def validate(self) -> None:
    """Raises ValueError with one line unless every part is valid and they fit each other."""
    self.workload.validate()
    for model in self.models.values():
      check_model(model)
      slots = self.workload.prompt_tokens + self.workload.response_tokens
      if slots > model.max_length:
        raise ValueError(
            f'prompt_tokens + response_tokens must be at most {model.max_length} '
            f'(max_length of the model), got {slots} (config.workload)')
    for recipe in self.recipes.values():
      for layout in self.layouts.values():
        recipe.config(layout.micro_batches(self.workload, recipe.samples)).validate()


def check_model(model: configs.TransformerConfig) -> None:
  """Raises ValueError where the formulas do not say what the model computes."""
  model.validate()
  for name, allowed in (
      ('remat', ('none', 'full')), ('post_norms', (False,)), ('parallel_residual', (False,)),
  ):
    if getattr(model, name) not in allowed:
      raise ValueError(f'{name} must be one of {allowed} to be counted, got '
                       f'{getattr(model, name)!r}')


def forward(
    model: configs.TransformerConfig, rows: int, tokens: int, *, slots: int | None = None
) -> int:
  """The trunk, forwards: 2 x (weights of the blocks) a token, and attention.

  Args:
    model: the shape.
    rows: sequences.
    tokens: queries a row.
    slots: keys a row; by default as many as queries. With a KV cache all of its slots.

  Returns:
    Operations.
  """
  attention, _ = _attention(model, rows, tokens, slots or tokens)
  return _dense(model, rows * tokens) + attention


def forward_backward(model: configs.TransformerConfig, rows: int, tokens: int) -> int:
  """The trunk, forwards and backwards: each product again for either factor's gradient.

  With more than one block of queries, attention is computed once more within the backward pass;
  with remat='full' every block is too, except for its last projection, which no gradient needs.
  """
  attention, blocks = _attention(model, rows, tokens, tokens)
  once = _dense(model, rows * tokens) + attention
  total = 3 * once
  if blocks > 1:
    total += attention
  if model.remat == 'full':
    down = 2 * rows * tokens * model.num_layers * model.mlp_width * model.width
    total += once - down
  return total


def head(model: configs.TransformerConfig, positions: int) -> int:
  """Logits of so many positions; with their gradient it is four times that.

  The chunked head computes a chunk's logits again, then two products for the gradients.
  """
  return 2 * positions * model.width * model.vocab_size


def score(model: configs.TransformerConfig, rows: int, workload: Workload) -> int:
  """Log-probs of the responses of so many rows."""
  slots = workload.prompt_tokens + workload.response_tokens
  return forward(model, rows, slots) + head(model, rows * workload.response_tokens)


def train(model: configs.TransformerConfig, rows: int, workload: Workload) -> int:
  """Log-probs of so many rows with their gradient."""
  slots = workload.prompt_tokens + workload.response_tokens
  return (forward_backward(model, rows, slots)
          + 4 * head(model, rows * workload.response_tokens))


def sample(
    model: configs.TransformerConfig, prompts: int, samples: int, workload: Workload
) -> int:
  """One prefill a prompt; then T - 1 tokens a row, each attending to all slots of the cache."""
  rows, slots = prompts * samples, cache_slots(workload)
  prefill = forward(model, prompts, workload.prompt_tokens) + head(model, prompts)
  step = forward(model, rows, 1, slots=slots) + head(model, rows)
  return prefill + (workload.response_tokens - 1) * step


def iteration(
    model: configs.TransformerConfig, recipe: Recipe, workload: Workload
) -> dict[str, float]:
  """Operations of one whole iteration, by part, and of A*-PO's stage 1.

  Args:
    model: the shape of policy, reference and critic.
    recipe: which parts there are.
    workload: P, L and T.

  Returns:
    `PARTS`, 'total' of them, and 'stage1': its share of an iteration, not in the total. The
    critic's part holds all that it computes, its gradient included.
  """
  rows = workload.prompts * recipe.samples
  slots = workload.prompt_tokens + workload.response_tokens
  one_score = score(model, rows, workload)
  # The critic's head of one row; its gradient needs no logits again.
  value_head = 2 * rows * workload.response_tokens * model.width
  parts = {
      'sample': sample(model, workload.prompts, recipe.samples, workload),
      'reference': one_score * recipe.reference,
      'old': one_score * recipe.old,
      'critic': recipe.critic * (
          forward(model, rows, slots) + forward_backward(model, rows, slots) + 4 * value_head),
      'update': train(model, rows, workload),
  }
  stage1 = 0.0
  if recipe.stage1_samples:
    drawn = sample(model, workload.prompts, recipe.stage1_samples, workload)
    stage1 = drawn / workload.stage1_epochs
  return {**parts, 'total': sum(parts.values()), 'stage1': stage1}


def cache_slots(workload: Workload) -> int:
  """Slots of a row's KV cache: the last token is chosen, and never read."""
  return workload.prompt_tokens + workload.response_tokens - 1


def cache_bytes(model: configs.TransformerConfig, rows: int, workload: Workload) -> int:
  """The KV cache of so many rows that are decoded at once."""
  itemsize = {'bfloat16': 2, 'float32': 4}[model.compute_dtype]
  a_slot = 2 * model.num_layers * model.num_kv_heads * model.head_dim * itemsize
  return rows * cache_slots(workload) * a_slot


def _dense(model: configs.TransformerConfig, tokens: int) -> int:
  """Projections of all blocks."""
  heads = 2 * model.num_heads + 2 * model.num_kv_heads  # Query and output; key and value.
  mlp = (3 if model.activation in configs.GATED else 2) * model.mlp_width
  return 2 * tokens * model.num_layers * model.width * (heads * model.head_dim + mlp)


def _attention(
    model: configs.TransformerConfig, rows: int, queries: int, slots: int
) -> tuple[int, int]:
  """(scores and their product with the values in all blocks, blocks of queries)."""
  blocks = math.ceil(queries / model.attention_block)
  if blocks > 1:
    queries = blocks * model.attention_block  # The last block is filled up.
  return 4 * rows * model.num_layers * model.num_heads * model.head_dim * queries * slots, blocks
