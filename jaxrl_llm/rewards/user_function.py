"""Rewards computed by a function of the user's own, given as `module:function`.

  def score(prompt: str, response: str, example: dict) -> float: ...

The function is the user's code: it is imported from the working directory or the Python path, and
runs in this process with no limit on time or memory. The response is hostile text: a policy finds
any text that scores. Never evaluate or execute it, bound what is computed from it, and score 0 for
what cannot be parsed.
"""

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable

import numpy as np

from jaxrl_llm.types import Example, RewardFn

_NAME = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*')

Function = Callable[[str, str, Example], float]


def is_name(name: str) -> bool:
  """Returns whether `name` has the form `module:function`."""
  return _NAME.fullmatch(name) is not None


def load(name: str) -> Function:
  """Imports a function.

  Args:
    name: `module:function`; the module may have dots.

  Returns:
    The function.

  Raises:
    ValueError: if the module cannot be imported, or has no such function of three arguments; one
      line.
  """
  module_name, _, function_name = name.partition(':')
  here = os.getcwd()
  try:
    sys.path.insert(0, here)
    module = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:
    raise ValueError(
        f'{name}: the module {module_name!r} cannot be imported from {here} or the Python path: '
        f'{_described(error)}'
    ) from error
  finally:
    sys.path.remove(here)

  function = getattr(module, function_name, None)
  if function is None:
    raise ValueError(f'{name}: {module_name!r} has no function {function_name!r}')
  if not callable(function):
    raise ValueError(f'{name} must be a function, got {type(function).__name__}')
  try:
    inspect.signature(function).bind('', '', {})
  except (TypeError, ValueError) as error:
    raise ValueError(
        f'{name} must take (prompt, response, example): {_described(error)}') from error
  return function


def source(name: str) -> str:
  """Returns the source of a function's module; '' if it has none, as compiled modules."""
  try:
    return inspect.getsource(inspect.getmodule(load(name)))
  except (OSError, TypeError):
    return ''


def make_reward(name: str, function: Function, *, count_truncated: bool = False) -> RewardFn:
  """Makes a reward from a function of one response.

  A truncated response scores at most 0, as stopping is part of the task; a negative score stays, so
  that rambling is never the better choice.

  Args:
    name: name of the function, for errors.
    function: see the module docstring. `example` is a copy of the problem: 'id', 'prompt',
      'answer', and the fields that the task keeps.
    count_truncated: whether a truncated response may score more than 0.

  Returns:
    A `types.RewardFn`. It raises ValueError, in one line, if the function raises or returns
    anything but a finite number.
  """

  def reward(
      prompts: list[str], responses: list[str], truncated: np.ndarray, examples: list[Example]
  ) -> np.ndarray:
    scores = np.array([
        _score(name, function, *row) for row in zip(prompts, responses, examples, strict=True)
    ], np.float32)
    capped = np.asarray(truncated, bool) & (not count_truncated)
    return np.where(capped, np.minimum(scores, 0), scores).astype(np.float32)

  return reward


def _score(name: str, function: Function, prompt: str, response: str, example: Example) -> float:
  """Returns the score of one response, checked."""
  where = f'{name} (example {example.get("id")})'
  try:
    score = function(prompt, response, dict(example))
  except (Exception, SystemExit) as error:
    raise ValueError(f'{where} failed: {_described(error)}') from error

  if not isinstance(score, (bool, int, float, np.bool_, np.integer, np.floating)):
    raise ValueError(f'{where} must return a number, got {type(score).__name__}')
  try:
    value = float(score)
  except OverflowError:
    value = math.inf
  if not abs(value) <= float(np.finfo(np.float32).max):
    raise ValueError(f'{where} must return a finite number (float32), got {value}')
  return value


def _described(error: BaseException) -> str:
  """Describes an error in one line."""
  text = ' '.join(str(error).split())[:300]
  return f'{type(error).__name__}: {text}' if text else type(error).__name__
