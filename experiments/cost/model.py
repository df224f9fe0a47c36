"""Cost of an iteration by formula: floating-point operations and KV-cache bytes.

Only matrix products are counted, two operations per multiply-add. Everything else (norms, softmax,
the optimizer, noise) adds less than 2 % at any useful width; tests/experiments/cost/main_test.py
checks this against XLA's own count. Attention is counted as computed here: every query of a block
with every slot, including slots that the mask hides.

Shapes: P prompts, K samples per prompt, B = P*K rows, L prompt slots, T response slots, D width,
V vocabulary.
"""

import dataclasses
import math
from typing import Any

from jaxrl_llm import checks
from jaxrl_llm.models import configs

# Parts of an iteration, in order of computation.
PARTS = ('sample', 'reference', 'old', 'critic', 'update')


@dataclasses.dataclass
class Workload:
  """Size of one iteration, and the number of devices that share it.

  Attributes:
    prompts: P, prompts per iteration.
    minibatch_prompts: prompts per optimizer step.
    prompt_tokens: L.
    response_tokens: T; every response is assumed to have the maximum length.
    stage1_epochs: epochs over which A*-PO's stage 1 is amortised; each epoch has each prompt once.
    devices: devices that parameters and rows are sharded over (mesh axis fsdp).
  """

  prompts: int
  minibatch_prompts: int
  prompt_tokens: int
  response_tokens: int
  stage1_epochs: int
  devices: int

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    prefix = 'config.workload'
    checks.at_least(self, prefix, **{field.name: 1 for field in dataclasses.fields(self)})
    checks.divisible(self, prefix, 'prompts', self.minibatch_prompts, of='minibatch_prompts')
    checks.divisible(self, prefix, 'minibatch_prompts', self.devices, of='devices')


@dataclasses.dataclass
class Layout:
  """Micro-batch size and rematerialisation.

  Attributes:
    title: one line for the table.
    remat: `TransformerConfig.remat` of the backward pass.
    sequences: rows per device and micro-batch; 0 means one prompt with all its samples.
  """

  title: str
  remat: str
  sequences: int

  def apply_to(self, model: configs.TransformerConfig) -> configs.TransformerConfig:
    """Returns the model with the layout's rematerialisation."""
    return dataclasses.replace(model, remat=self.remat)

  def micro_batches(self, workload: Workload, samples: int) -> int:
    """Returns the number of micro-batches in one optimizer step.

    Raises:
      ValueError: the samples of a prompt, or the prompts of a micro-batch, do not fit.
    """
    sequences = self.sequences or samples
    parts, rest = divmod(workload.minibatch_prompts * samples, workload.devices * sequences)
    if sequences % samples or rest:
      raise ValueError(
          f'a micro-batch must be whole prompts of {samples} samples and divide '
          f'{workload.minibatch_prompts} prompts over {workload.devices} devices, got {sequences} '
          'sequences per device (config.layouts)')
    return parts


@dataclasses.dataclass
class Recipe:
  """An algorithm and the parts of its iteration.

  Attributes:
    label: name in tables.
    module: module in jaxrl_llm/algorithms.
    options: fields of its Config that differ from the defaults, except samples and micro-batches.
    samples: K.
    published: the method's name in the rows of `tables.reference`; '' if it is not there.
    reference: True if π_ref scores the samples.
    old: True if π_t scores the samples before the first step.
    critic: True if there is a value function, which also scores them before the first step.
    aux: names of the additional arrays [P] in its batch.
    stage1_samples: N per prompt, sampled once from π_ref.
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
    """Builds the algorithm's config."""
    options = {**self.options, 'num_micro_batches': num_micro_batches}
    if not self.stage1_samples:  # A*-PO's `samples_per_prompt` is N.
      options['samples_per_prompt'] = self.samples
    return self.module.Config(**options)


@dataclasses.dataclass
class Study:
  """Config of the tool; see experiments/configs/cost.py.

  Attributes:
    name: name of the study.
    models: networks by size; policy, reference and critic all have that shape.
    workload: size of an iteration.
    layouts: layouts by name; flops use the first one.
    recipes: recipes by algorithm name.
    note: source of the numbers.
  """

  name: str
  models: dict[str, configs.TransformerConfig]
  workload: Workload
  layouts: dict[str, Layout]
  recipes: dict[str, Recipe]
  note: str

  def validate(self) -> None:
    """Raises a one-line ValueError unless all parts are valid and consistent."""
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
  """Raises ValueError if the formulas do not cover the model's computation."""
  model.validate()
  checks.one_of(model, 'config.models', remat=('none', 'full'))
  checks.fixed(
      model, 'config.models', 'to be counted', post_norms=False, parallel_residual=False)


def forward(
    model: configs.TransformerConfig, rows: int, tokens: int, *, slots: int | None = None
) -> int:
  """Operations of the trunk's forward pass: 2 x (block weights) per token, plus attention.

  Args:
    model: the model's shape.
    rows: number of sequences.
    tokens: queries per row.
    slots: keys per row; by default as many as queries. With a KV cache, all its slots.

  Returns:
    Number of operations.
  """
  attention, _ = _attention(model, rows, tokens, slots or tokens)
  return _dense(model, rows * tokens) + attention


def forward_backward(model: configs.TransformerConfig, rows: int, tokens: int) -> int:
  """Operations of the trunk's forward and backward passes.

  The gradient of each product's two factors takes one product each. With more than one block of
  queries, the backward pass recomputes attention. With remat='full' it also recomputes every block
  except the last projection, which no gradient needs.
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
  """Operations of the logits at the given number of positions; four times that with gradients.

  The chunked head recomputes a chunk's logits, then takes two products for the gradients.
  """
  return 2 * positions * model.width * model.vocab_size


def score(model: configs.TransformerConfig, rows: int, workload: Workload) -> int:
  """Operations of scoring the responses of the given number of rows."""
  slots = workload.prompt_tokens + workload.response_tokens
  return forward(model, rows, slots) + head(model, rows * workload.response_tokens)


def train(model: configs.TransformerConfig, rows: int, workload: Workload) -> int:
  """Operations of the log-probs of the given number of rows, with their gradient."""
  slots = workload.prompt_tokens + workload.response_tokens
  return (forward_backward(model, rows, slots)
          + 4 * head(model, rows * workload.response_tokens))


def sample(
    model: configs.TransformerConfig, prompts: int, samples: int, workload: Workload
) -> int:
  """Operations of sampling: one prefill per prompt, then T - 1 steps per row on the full cache."""
  rows, slots = prompts * samples, cache_slots(workload)
  prefill = forward(model, prompts, workload.prompt_tokens) + head(model, prompts)
  step = forward(model, rows, 1, slots=slots) + head(model, rows)
  return prefill + (workload.response_tokens - 1) * step


def iteration(
    model: configs.TransformerConfig, recipe: Recipe, workload: Workload
) -> dict[str, float]:
  """Operations of one whole iteration by part, and of A*-PO's stage 1.

  Args:
    model: shape of policy, reference and critic.
    recipe: the algorithm and its parts.
    workload: P, L and T.

  Returns:
    `PARTS`, their 'total', and 'stage1': its share of an iteration, not in the total. The critic's
    part includes all its computation, gradients too.
  """
  rows = workload.prompts * recipe.samples
  slots = workload.prompt_tokens + workload.response_tokens
  one_score = score(model, rows, workload)

  # The critic's head has one row, and its gradient recomputes nothing.
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
  """Slots of a row's KV cache: the last token is sampled but never read."""
  return workload.prompt_tokens + workload.response_tokens - 1


def cache_bytes(model: configs.TransformerConfig, rows: int, workload: Workload) -> int:
  """Bytes of the KV cache of rows that are decoded at once."""
  itemsize = {'bfloat16': 2, 'float32': 4}[model.compute_dtype]
  a_slot = 2 * model.num_layers * model.num_kv_heads * model.head_dim * itemsize
  return rows * cache_slots(workload) * a_slot


def _dense(model: configs.TransformerConfig, tokens: int) -> int:
  """Operations of the projections of all blocks."""
  heads = 2 * model.num_heads + 2 * model.num_kv_heads  # Query and output; key and value.
  mlp = (3 if model.activation in configs.GATED else 2) * model.mlp_width
  return 2 * tokens * model.num_layers * model.width * (heads * model.head_dim + mlp)


def _attention(
    model: configs.TransformerConfig, rows: int, queries: int, slots: int
) -> tuple[int, int]:
  """Returns (operations of scores and weighted values in all blocks, number of query blocks)."""
  blocks = math.ceil(queries / model.attention_block)
  if blocks > 1:
    queries = blocks * model.attention_block  # The last block is padded.
  return 4 * rows * model.num_layers * model.num_heads * model.head_dim * queries * slots, blocks
