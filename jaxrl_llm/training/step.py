"""One optimizer step: gradients over micro-batches, the update, and its compilation.

Normalisation is global. A loss is returned as total and weight, totals and their gradients are
summed over micro-batches, and the division happens once, at the end. The gradient over 8 micro-
batches is the gradient of the whole batch, however unevenly the weight is spread over them.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.training import optim
from jaxrl_llm.types import Array, Metrics, Params, TrainState, WeightedMean

LossFn = Callable[[Params, Any], tuple[WeightedMean, Metrics]]

_BACKEND_COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'


def take_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Any,
    *,
    num_micro_batches: int = 1,
    allowed: Array | bool = True,
) -> tuple[TrainState, Metrics]:
  """Takes one optimizer step on a batch; most train steps consist of this call.

  Under an `optim.PartialOptimizer` the gradient of a frozen parameter is neither computed nor
  stored, and the parameter is returned unchanged.

  Args:
    loss_fn: (params, micro_batch) -> (loss, metrics), both as `WeightedMean`s; `params` as in
      the state, including frozen ones.
    optimizer: the transformation that made `state.opt_state`.
    state: the state before the step.
    batch: a pytree whose array leaves all share the leading axis P.
    num_micro_batches: number of micro-batches; must divide P.
    allowed: bool []; False leaves the state unchanged and only computes the metrics.

  Returns:
    The state after the step, unchanged unless loss, metrics and gradient norm are all finite; and
    the loss's metrics with `train/loss` and `train/grad_norm`.

  Raises:
    ValueError: as in `accumulate_gradients`.
  """
  trained = state.params
  if isinstance(optimizer, optim.PartialOptimizer):
    trained = optimizer.select(state.params)

  loss, totals, metrics = _accumulate(
      lambda trained, micro_batch: loss_fn(_overlay(trained, state.params), micro_batch),
      trained, batch, num_micro_batches,
  )

  # A weight of NaN must not be treated as an empty batch, whose loss is 0.
  value = jnp.where(jnp.isnan(loss.weight), jnp.nan, loss.value())
  metrics = {'train/loss': WeightedMean(value, jnp.ones_like(value)), **metrics}

  state, step_metrics = _update(
      optimizer, state, lambda: _divide(totals, loss.weight, trained),
      allowed & _all_finite(metrics))
  return state, {**metrics, **step_metrics}


def take_steps(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Any,
    *,
    num_epochs: int = 1,
    num_minibatches: int = 1,
    num_micro_batches: int = 1,
) -> tuple[TrainState, Metrics, Metrics]:
  """Takes several optimizer steps on one batch: epochs of minibatches, in row order.

  Each step is `take_step` on the next P / num_minibatches rows. All steps form one compiled loop.
  The rows stay in the order in which they were drawn, which is already random. No further step is
  taken after one that is not finite.

  Args:
    loss_fn: as in `take_step`.
    optimizer: the transformation that made `state.opt_state`.
    state: the state before the steps.
    batch: a pytree whose array leaves all share the leading axis P.
    num_epochs: passes over the batch.
    num_minibatches: steps per pass; must divide P.
    num_micro_batches: number of micro-batches per minibatch.

  Returns:
    The state; the metrics of the first step, when no parameter had moved; those of all steps.

  Raises:
    ValueError: as in `minibatches` and `accumulate_gradients`, or if `num_epochs` is below 1.
  """
  if num_epochs < 1:
    raise ValueError(f'num_epochs must be at least 1, got {num_epochs} (config.num_epochs)')

  parts = jax.tree.map(lambda *x: jnp.stack(x), *minibatches(batch, num_minibatches))
  pick = lambda index: jax.tree.map(lambda leaf: leaf[index % num_minibatches], parts)
  steps = num_epochs * num_minibatches

  def take(state, index, allowed=True):
    return take_step(
        loss_fn, optimizer, state, pick(index), num_micro_batches=num_micro_batches,
        allowed=allowed)

  def take_next(carry, index):
    state, allowed = carry
    after, metrics = take(state, index, allowed)
    return (after, after.step > state.step), metrics

  if steps == 1:
    state, first = take(state, 0)
    return state, first, first

  # The loop includes the first step: taken outside, a second copy of the step would be compiled,
  # with a second set of temporaries.
  (state, _), metrics = jax.lax.scan(take_next, (state, jnp.asarray(True)), jnp.arange(steps))

  first = jax.tree.map(lambda leaf: leaf[0], metrics)
  return state, first, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), metrics)


def map_micro_batches(fn: Callable[[Any], Any], batch: Any, *, num_micro_batches: int = 1) -> Any:
  """Computes `fn(batch)` in micro-batches, e.g. frozen quantities before an iteration's steps.

  Args:
    fn: maps a batch of p rows to a pytree of arrays with leading axis p, each row independently.
    batch: a pytree whose array leaves all share the leading axis P.
    num_micro_batches: number of micro-batches; must divide P. With 1 there is no loop.

  Returns:
    The value of `fn(batch)`.

  Raises:
    ValueError: if `num_micro_batches` does not divide P.
  """
  rows = _leading_axis(batch)
  if num_micro_batches < 1 or rows % num_micro_batches:
    raise ValueError(
        f'num_micro_batches must divide the batch of {rows}, got {num_micro_batches}')

  if num_micro_batches == 1:
    return fn(batch)

  def join(leaf):
    return jnp.reshape(jnp.swapaxes(leaf, 0, 1), (rows,) + leaf.shape[2:])

  return jax.tree.map(join, jax.lax.map(fn, _split_rows(batch, num_micro_batches)))


def accumulate_gradients(
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    *,
    num_micro_batches: int = 1,
) -> tuple[Array, Params, Metrics]:
  """Computes loss, gradient and metrics of a batch, micro-batch by micro-batch.

  L = (Σ_m total_m) / (Σ_m weight_m),  ∇L = (Σ_m ∇total_m) / (Σ_m weight_m).

  The weight must not depend on the parameters (it counts tokens or rows). Row i goes to
  micro-batch i mod M: if the batch is sharded over devices, each device then holds an equal part
  of every micro-batch, and nothing moves. Sums are in float32 at least; gradients are returned in
  the dtype of their parameter. A batch of weight 0 has loss 0 and gradient 0.

  Args:
    loss_fn: (params, micro_batch) -> (loss, metrics), both as `WeightedMean`s.
    params: the parameters to differentiate; None leaves are ignored.
    batch: a pytree whose array leaves all share the leading axis P.
    num_micro_batches: M; must divide P. With 1 there is no scan.

  Returns:
    The loss, float32 []; the gradients, shaped like `params`; the merged metrics.

  Raises:
    ValueError: if M is below 1 or does not divide P, or a leaf has no axis P.
  """
  loss, totals, metrics = _accumulate(loss_fn, params, batch, num_micro_batches)
  return loss.value(), _divide(totals, loss.weight, params), metrics


def apply_gradients(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradients: Params,
    *,
    allowed: Array | bool = True,
) -> tuple[TrainState, Metrics]:
  """Takes one optimizer step on the state, if the gradients are finite.

  Args:
    optimizer: the transformation that made `state.opt_state`.
    state: the state before the step.
    gradients: shaped like `state.params`; None for a frozen parameter.
    allowed: bool []; False leaves the state unchanged for any gradients.

  Returns:
    The state with new parameters, optimizer state and step + 1 (key and aux unchanged), or the
    unchanged state if the norm is not finite or `allowed` is False; and `train/grad_norm`, the
    global norm before any clipping.
  """
  def select(taken, apply, keep, *operands):
    return jax.tree.map(
        lambda new, old: jnp.where(taken, new, old), apply(*operands), keep(*operands))

  return _update(optimizer, state, lambda: gradients, allowed, choose=select)


def minibatches(batch: Any, parts: int) -> Iterator[Any]:
  """Splits every array of a batch into `parts` equal pieces along axis 0, one per update.

  Args:
    batch: a pytree whose array leaves all share the leading axis P.
    parts: number of pieces; must divide P.

  Yields:
    Batches of P / parts rows, in order.

  Raises:
    ValueError: if `parts` does not divide P.
  """
  rows = _leading_axis(batch)
  if parts < 1 or rows % parts:
    raise ValueError(f'num_minibatches must divide the batch of {rows}, got {parts}')
  size = rows // parts
  for start in range(0, rows, size):
    yield batch if parts == 1 else jax.tree.map(lambda x: x[start : start + size], batch)  # noqa: B023


class CountedJit:
  """A jitted function that counts how often it is traced.

  Attributes:
    num_traces: traces so far; 1 after any number of calls with equal shapes, dtypes and
      structure. (A change of sharding alone recompiles without a trace: see
      `count_compilations`.)
  """

  def __init__(self, fn: Callable[..., Any], **jit_options: Any):
    self.num_traces = 0

    def traced(*args, **kwargs):
      self.num_traces += 1
      return fn(*args, **kwargs)

    traced.__name__ = getattr(fn, '__name__', 'function')
    self._jitted = jax.jit(traced, **jit_options)

  def __call__(self, *args, **kwargs):
    """Runs the compiled function."""
    return self._jitted(*args, **kwargs)

  def lower(self, *args, **kwargs):
    """Lowers the function like `jax.jit(...).lower`."""
    return self._jitted.lower(*args, **kwargs)


def jit_train_step(
    train_step: Callable[..., tuple[TrainState, Metrics]],
    *,
    state_shardings: Any = None,
    batch_shardings: Any = None,
    frozen_shardings: tuple[Any, ...] = (),
    donate_state: bool = True,
) -> CountedJit:
  """Compiles (state, batch, *frozen) -> (state, metrics).

  The state has the same shardings as input and as output, so that the second call does not
  recompile. It is donated: the caller must not use the old state.

  Args:
    train_step: the algorithm's step; frozen networks, if any, are further arguments.
    state_shardings: shardings shaped like the state (`sharding.rules.shardings`), or None on one
      device.
    batch_shardings: one sharding or a tree of them, for every batch; required if
      `state_shardings` is given.
    frozen_shardings: one entry per frozen argument.
    donate_state: whether to reuse the old state's buffers.

  Returns:
    The compiled step.
  """
  options: dict[str, Any] = {'donate_argnums': (0,) if donate_state else ()}
  if state_shardings is not None:
    options['in_shardings'] = (state_shardings, batch_shardings, *frozen_shardings)
    options['out_shardings'] = (state_shardings, None)

  return CountedJit(train_step, **options)


@contextlib.contextmanager
def count_compilations() -> Iterator[collections.Counter]:
  """Counts XLA compilations inside the block, by name of the jitted function.

  Yields:
    A counter that is updated as functions are compiled: {'jit_train_step': 1, ...}.
  """
  counts: collections.Counter = collections.Counter()

  def listen(event: str, duration: float, **details):
    del duration
    if event == _BACKEND_COMPILE_EVENT:
      counts[str(details.get('fun_name', 'unknown'))] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield counts
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def _accumulate(
    loss_fn: LossFn, params: Params, batch: Any, num_micro_batches: int
) -> tuple[WeightedMean, Params, Metrics]:
  """Returns loss, gradient of its total, and metrics: `accumulate_gradients` undivided."""
  rows = _leading_axis(batch)

  if num_micro_batches < 1 or rows % num_micro_batches:
    raise ValueError(
        f'num_micro_batches must divide the batch of {rows}, got {num_micro_batches} '
        '(config.num_micro_batches)'
    )

  def micro_step(micro_batch):
    def total_fn(params):
      loss, metrics = loss_fn(params, micro_batch)
      return _at_least_float32(loss.total), (loss, metrics)

    gradients, (loss, metrics) = jax.grad(total_fn, has_aux=True)(params)
    return _at_least_float32((loss, gradients, metrics))

  if num_micro_batches == 1:
    loss, gradients, metrics = micro_step(batch)
  else:
    loss, gradients, metrics = _sum_over_micro_batches(micro_step, batch, num_micro_batches)
  return loss, gradients, metrics


def _divide(totals: Params, weight: Array, params: Params) -> Params:
  """Returns the gradients of a mean, in the dtype of their parameters."""
  def mean(total, param):
    return WeightedMean(total, weight).value().astype(param.dtype)

  return jax.tree.map(mean, totals, params)


def _update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    compute_gradients: Callable[[], Params],
    allowed: Array | bool,
    *,
    choose: Callable[..., Any] = jax.lax.cond,
) -> tuple[TrainState, Metrics]:
  """Applies gradients like `apply_gradients`, but computes them where they are used.

  A branch that contains the division of the gradients compiles to the same update as without a
  condition, bit for bit, and happens in place. A branch would separate gradients computed outside
  it from the update and round them differently; for those, both sides are computed and one is
  selected.
  """
  def apply(step, params, opt_state):
    def step_by(update, param):
      return param if update is None else optax.apply_updates(param, update)

    updates, opt_state = optimizer.update(compute_gradients(), opt_state, params)
    return step + 1, jax.tree.map(step_by, updates, params, is_leaf=_is_none), opt_state

  norm = optax.tree.norm(_at_least_float32(compute_gradients()))
  step, params, opt_state = choose(
      jnp.isfinite(norm) & allowed, apply, lambda *unchanged: unchanged,
      state.step, state.params, state.opt_state)

  state = dataclasses.replace(state, step=step, params=params, opt_state=opt_state)
  return state, {'train/grad_norm': WeightedMean(norm, jnp.float32(1.0))}


def _sum_over_micro_batches(micro_step: Callable[[Any], Any], batch: Any, parts: int) -> Any:
  micro_batches = _split_rows(batch, parts)
  first = jax.tree.map(lambda leaf: leaf[0], micro_batches)
  zeros = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(micro_step, first)
  )

  def add(carry, micro_batch):
    return jax.tree.map(jnp.add, carry, micro_step(micro_batch)), None

  return jax.lax.scan(add, zeros, micro_batches)[0]


def _split_rows(batch: Any, parts: int) -> Any:
  """Returns [M, P / M, ...]: row i is in part i mod M, so that nothing moves between devices."""
  def split(leaf):
    return jnp.swapaxes(jnp.reshape(leaf, (-1, parts) + leaf.shape[1:]), 0, 1)

  return jax.tree.map(split, batch)


def _leading_axis(batch: Any) -> int:
  leaves = jax.tree_util.tree_leaves_with_path(batch)
  if not leaves:
    raise ValueError('batch must hold at least one array, got none')

  rows = None
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if jnp.ndim(leaf) == 0:
      raise ValueError(f'every array of a batch needs a leading axis, got a scalar ({name})')

    rows = leaf.shape[0] if rows is None else rows
    if leaf.shape[0] != rows:
      raise ValueError(
          f'arrays of a batch must share their leading axis, got {rows} and '
          f'{leaf.shape[0]} ({name})'
      )
  return rows


def _overlay(trained: Params, params: Params) -> Params:
  """Returns the parameters with the trained ones replaced by `trained`."""
  pick = lambda mine, theirs: theirs if mine is None else mine
  return jax.tree.map(pick, trained, params, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
  return leaf is None


def _all_finite(metrics: Metrics) -> Array:
  """Returns whether all metrics are finite; an empty mean is, as in `metrics.to_floats`."""
  sound = [jnp.isfinite(mean.value()) & ~jnp.isnan(mean.weight) for mean in metrics.values()]
  return jnp.all(jnp.stack(sound))


def _at_least_float32(tree: Any) -> Any:
  def widen(leaf):
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

  return jax.tree.map(widen, tree)
