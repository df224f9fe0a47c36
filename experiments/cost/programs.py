"""Cost of an iteration by the compiler: bytes of the real train steps, from shapes alone.

Nothing is allocated. Programs are compiled for fake CPU devices, so the bytes are the CPU
compiler's, which widens bfloat16 products: compare them only with each other.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.cost import model as cost_model
from jaxrl_llm.models import configs, policy, value
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Batch, Rollouts, TrainState

# The machine code is never run, so it is not optimised. Buffers are assigned before code
# generation: their bytes are the same, in a quarter of the time.
_COMPILER_OPTIONS = {
    'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True,
}


def make(
    recipe: cost_model.Recipe,
    model: configs.TransformerConfig,
    optimizer: optax.GradientTransformation,
    *,
    num_micro_batches: int = 1,
) -> Algorithm:
  """Makes the algorithm of a recipe on networks of the given shape."""
  networks = (policy.make(model), value.make(model)) if recipe.critic else (policy.make(model),)
  return recipe.module.make(recipe.config(num_micro_batches), *networks, optimizer)


def abstract_state(
    recipe: cost_model.Recipe, model: configs.TransformerConfig, algorithm: Algorithm
) -> TrainState:
  """Shapes of the state from the real init functions."""
  key = rng.base_key(0)
  params = {'policy': jax.eval_shape(policy.make(model).init, key)}
  if recipe.critic:
    params['value'] = jax.eval_shape(value.make(model).init, key)
  return jax.eval_shape(lambda params: algorithm.init(key, params), params)


def abstract_batch(
    recipe: cost_model.Recipe, workload: cost_model.Workload, prompts: int
) -> Batch:
  """Shapes of a batch with the given number of prompts."""
  samples, slots = recipe.samples, workload.response_tokens
  array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  tokens = (prompts, samples, slots)

  # As a sampler returns them.
  rollouts = Rollouts(
      prompts=array(prompts, workload.prompt_tokens, dtype=jnp.int32),
      prompt_lengths=array(prompts, dtype=jnp.int32),
      tokens=array(*tokens, dtype=jnp.int32),
      lengths=array(prompts, samples, dtype=jnp.int32),
      mask=array(*tokens),
      log_probs=array(*tokens),
      stop_reason=array(prompts, samples, dtype=jnp.int8),
  )

  return Batch(
      rollouts, array(prompts, samples), array(*tokens) if recipe.reference else None,
      {name: array(prompts) for name in recipe.aux}, array(prompts),
  )


def num_bytes(tree: Any) -> int:
  """Bytes of a tree of arrays or shapes."""
  leaves = [leaf for leaf in jax.tree.leaves(tree) if not _is_key(leaf)]
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def state_bytes(recipe: cost_model.Recipe, state: TrainState) -> dict[str, int]:
  """Bytes that stay for the whole iteration, summed over all devices, by owner.

  Returns:
    'policy' and 'critic' (parameters), 'optimizer' (of both), 'reference' (the policy's shape).
  """
  return {
      'policy': num_bytes(state.params['policy']),
      'critic': num_bytes(state.params.get('value', {})),
      'optimizer': num_bytes(state.opt_state),
      'reference': num_bytes(state.params['policy']) * recipe.reference,
  }


def memory(
    recipe: cost_model.Recipe,
    model: configs.TransformerConfig,
    optimizer: optax.GradientTransformation,
    workload: cost_model.Workload,
    layout: cost_model.Layout,
) -> dict[str, int]:
  """Compiles one optimizer step on a mini-batch and returns its bytes per device.

  Args:
    recipe: the algorithm.
    model: shape of its networks.
    optimizer: optimizer of the state.
    workload: sizes and number of devices.
    layout: micro-batches and rematerialisation.

  Returns:
    'arguments' (state and batch) and 'temporaries' (with outputs that alias no argument).

  Raises:
    ValueError: there are fewer devices than the workload needs.
  """
  devices = jax.devices()
  if len(devices) < workload.devices:
    raise ValueError(
        f'there must be at least {workload.devices} devices, got {len(devices)}: unset '
        f'XLA_FLAGS, or set XLA_FLAGS=--xla_force_host_platform_device_count={workload.devices}')

  model = layout.apply_to(model)
  algorithm = make(
      recipe, model, optimizer,
      num_micro_batches=layout.micro_batches(workload, recipe.samples))
  mesh = mesh_lib.make_mesh(1, -1, 1, devices=devices[: workload.devices])

  state = abstract_state(recipe, model, algorithm)
  shardings = rules.shardings(mesh, state)
  batch_sharding = mesh_lib.batch_sharding(mesh)
  train_step = step_lib.jit_train_step(
      algorithm.train_step, state_shardings=shardings, batch_shardings=batch_sharding)
  batch = abstract_batch(recipe, workload, workload.minibatch_prompts)

  with jax.set_mesh(mesh):
    compiled = train_step.lower(rules.abstract(state, shardings), batch).compile(
        compiler_options=_COMPILER_OPTIONS)

  analysis = compiled.memory_analysis()
  fresh = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return {
      'arguments': analysis.argument_size_in_bytes,
      'temporaries': analysis.temp_size_in_bytes + fresh,
  }


def count_products(function: Any, *arguments: Any) -> int:
  """Counts operations of all matrix products in a function, multiplying out loops over layers.

  XLA's own count takes a loop's body only once. Here only loops without a fixed length count once.

  Args:
    function: function to trace.
    *arguments: arrays or shapes.

  Returns:
    Number of operations, two per multiply-add.
  """
  return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def traced_step(
    recipe: cost_model.Recipe,
    model: configs.TransformerConfig,
    optimizer: optax.GradientTransformation,
    workload: cost_model.Workload,
) -> int:
  """Applies `count_products` to the real train step on a mini-batch."""
  algorithm = make(recipe, model, optimizer)
  return count_products(
      algorithm.train_step, abstract_state(recipe, model, algorithm),
      abstract_batch(recipe, workload, workload.minibatch_prompts))


def _products(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      summed = math.prod(shape[axis] for axis in contracted)
      total += 2 * math.prod(equation.outvars[0].aval.shape) * summed
      continue
    times = equation.params['length'] if equation.primitive.name == 'scan' else 1
    for parameter in equation.params.values():
      for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          total += times * _products(inner)
  return total


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
