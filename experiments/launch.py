"""Starts every experiment binary: flags, config and workdir checks, one-line errors, results.json.

A binary is a module with a docstring, a `main(run)` and

  if __name__ == '__main__':
    launch.run(main, default_config='experiments/configs/NAME.py')

Flags: --config=FILE.py[:setting] (a file with `get_config()`, which returns a plain typed mutable
dataclass), --config.field=value (overrides, nested by dots), --workdir=DIR, --debug (tracebacks
instead of one line). Exit status: 0 done, or done before; 2 bad input, with one line on stderr;
130 interrupted, after a save where the binary could make one.

Nothing here imports JAX before the flags have been parsed and the workdir has been checked.
"""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import math
import numbers
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import flags

from experiments import overrides
from jaxrl_llm.training import metrics

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# Config fields that say where something lies or how it is shown, never what is computed: a run
# may be resumed with another value.
RELOCATABLE_FIELDS = frozenset({'data_dir', 'wandb_project'})

_VERSIONS = {
    'jax': 'jax', 'jaxlib': 'jaxlib', 'flax': 'flax', 'optax': 'optax',
    'orbax': 'orbax-checkpoint', 'numpy': 'numpy',
}
