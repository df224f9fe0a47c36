"""Bounds on imports between packages, on calls in each package, and on sizes (docs/style.md).

Every import is parsed, including those inside functions. Messages name file and line.
"""

import ast
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import textwrap

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / 'jaxrl_llm'
SOURCES = sorted(PACKAGE.rglob('*.py'))
BINARIES = sorted((REPOSITORY / 'experiments').rglob('*.py'))
PROGRAMS = {path.stem for path in (REPOSITORY / 'experiments').glob('*.py')} - {'__init__'}

# Folder -> packages of the project that it may import, in addition to itself, `types` and `checks`.
_LIBRARY = ('rl', 'models', 'data', 'rewards', 'training', 'sharding', 'tables')
_METHODS = ('algorithms', 'evaluation', 'sampling', 'tasks', 'hmm', 'graphs')
MAY_IMPORT = {
    '_lazy': (),
    'checks': (),
    'types': (),
    'tables': (),
    'rl': (),
    'models': ('training.files',),
    'sampling': ('rl',),
    'sharding': (),
    'training': ('sharding',),
    'data': ('training.files',),
    'rewards': (),
    'tasks': ('data', 'rewards'),
    'evaluation': ('sampling', 'rewards', 'rl'),
    'algorithms': ('rl', 'training.step', 'graphs.prototypes'),
    'hmm': ('rl',),
    'graphs': ('rl', 'training.files'),
    'runs': _METHODS + _LIBRARY,
}
ALONE = ('_lazy', 'checks', 'types')  # They import nothing of the project.

# Library -> the only files that may import it, as prefixes of paths in the package or repository.
ONLY_IN = {
    'flax': ('models/',),
    'gguf': ('models/pretrained/',),
    'orbax': ('training/checkpoints.py',),
    'optax': ('training/', 'algorithms/', 'runs/', 'experiments/rebel_games/',
              'experiments/rebel_gaussian/', 'experiments/cost/'),
    'ml_collections': ('runs/',),
    'tensorflow': (),
    'torch': ('experiments/bench_transformers/',),  # Compared with, not depended on.
    'ray': (),
    'transformers': ('experiments/bench_transformers/',),
}

# Imported inside the functions that need them, because importing them is slow.
# A TFDS builder must subclass one of TFDS's classes, and is imported by TFDS only.
HEAVY = frozenset({
    'tensorflow', 'tensorflow_datasets', 'torch', 'tokenizers', 'sentencepiece', 'transformers',
    'math_verify', 'sympy', 'latex2sympy2_extended', 'matplotlib', 'tensorboardX', 'wandb',
    'jinja2', 'safetensors', 'sacrebleu', 'rouge_score', 'scipy', 'gguf',
})
HEAVY_EXCEPTIONS = ('data/tfds_builders/',)

# rl/, algorithms/ and sampling/ are pure: arrays in, arrays out.
PURE = ('rl/', 'algorithms/', 'sampling/', 'hmm/filtering', 'hmm/oracles', 'hmm/learners',
        'hmm/glm_hmm', 'graphs/prototypes')
IMPURE_MODULES = frozenset({
    'time', 'datetime', 'random', 'os', 'io', 'sys', 'pathlib', 'tempfile', 'shutil', 'logging',
    'subprocess', 'threading', 'socket', 'secrets', 'pickle', 'absl', 'tqdm', 'rich',
})
IMPURE_CALLS = frozenset({'print', 'open', 'input', 'eval', 'exec'})


@functools.cache
def _tree(path):
  return ast.parse(path.read_text(encoding='utf-8'), str(path))


def _name(path):
  """Returns the path in the package, or that of a file of experiments/ in the repository."""
  is_library = path.is_relative_to(PACKAGE)
  return path.relative_to(PACKAGE if is_library else REPOSITORY).as_posix()


def _imports(tree, package=''):
  """Yields (line, dotted name, is at module level) of every import in `tree`.

  `from a import b` gives a.b, whether or not b is a module. Relative imports are resolved against
  `package`; importlib with a constant is included.
  """
  top = {id(node) for node in tree.body}

  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name, id(node) in top
    elif isinstance(node, ast.ImportFrom):
      module = node.module or ''
      if node.level:
        parents = package.split('.')
        base = parents[: len(parents) - node.level + 1]
        module = '.'.join([*base, module] if module else base)
      for alias in node.names:
        yield node.lineno, f'{module}.{alias.name}', id(node) in top
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
      called = ast.unparse(node.func)
      if called in ('__import__', 'importlib.import_module', 'import_module'):
        yield node.lineno, str(node.args[0].value), False


def _package(path):
  return '.'.join(path.relative_to(REPOSITORY).parent.parts)


def _below(name, prefix):
  return name == prefix or name.startswith(prefix + '.')


def _layer_offences(name, tree, package):
  """Imports of project modules that the file `name` (a path in the package) may not make."""
  folder = name.split('/')[0].removesuffix('.py')
  if folder == '__init__':
    allowed = ()
  elif folder in MAY_IMPORT:
    below = MAY_IMPORT[folder] + (() if folder in ALONE else ('_lazy', 'checks', 'types'))
    allowed = tuple(f'jaxrl_llm.{other}' for other in below)
    if folder != 'algorithms':  # Algorithms never import each other.
      allowed += (f'jaxrl_llm.{folder}',)
  else:
    return [f'{name}: the folder {folder} has no rule in tests/layering_test.py']

  offences = []
  for line, imported, _ in _imports(tree, package):
    ours = any(_below(imported, root) for root in ('jaxrl_llm', 'experiments', 'tests'))
    if ours and not any(_below(imported, prefix) for prefix in allowed):
      offences.append(f'{name}:{line} imports {imported}')
  return offences


def test_folders_import_only_allowed_packages():
  offences = [o for path in SOURCES
              for o in _layer_offences(_name(path), _tree(path), _package(path))]
  assert not offences, '\n'.join(offences)


@pytest.mark.parametrize('name, source', [
    ('rl/x.py', 'from jaxrl_llm.models import policy'),
    ('rl/x.py', 'import jaxrl_llm.sampling.decode'),
    ('rl/x.py', 'def f():\n  from jaxrl_llm import data'),
    ('rl/x.py', 'from .. import models'),
    ('rl/x.py', 'from ..models import policy'),
    ('rl/x.py', 'import importlib\nimportlib.import_module("jaxrl_llm.models")'),
    ('models/x.py', 'from jaxrl_llm.rl import masking'),
    ('sampling/x.py', 'from jaxrl_llm.models import policy'),
    ('algorithms/x.py', 'from jaxrl_llm.algorithms import sft'),
    ('algorithms/x.py', 'from . import sft'),
    ('algorithms/x.py', 'from jaxrl_llm.training import optim'),
    ('algorithms/x.py', 'from jaxrl_llm import training'),
    ('data/x.py', 'from jaxrl_llm.rewards import exact_match'),
    ('rewards/x.py', 'from jaxrl_llm.tasks import arithmetic'),
    ('training/x.py', 'from jaxrl_llm.algorithms import sft'),
    ('evaluation/x.py', 'from jaxrl_llm.models import policy'),
    ('tables/x.py', 'from jaxrl_llm.training import metrics'),
    ('types.py', 'from jaxrl_llm.rl import masking'),
    ('__init__.py', 'from jaxrl_llm import types'),
    ('training/x.py', 'from experiments import sft'),
    ('runs/x.py', 'from experiments import sft'),
    ('rl/x.py', 'from jaxrl_llm.hmm import filtering'),
    ('tasks/x.py', 'from jaxrl_llm.runs import launch'),
    ('checks.py', 'from jaxrl_llm import types'),
    ('novelty/x.py', ''),
])
def test_the_layer_rule_catches(name, source):
  package = ('jaxrl_llm.' + name.rpartition('/')[0]).rstrip('.')
  assert _layer_offences(name, ast.parse(source), package)


@pytest.mark.parametrize('name, source', [
    ('rl/x.py', 'from jaxrl_llm.rl import masking\nfrom jaxrl_llm.types import Array\n'
                'from . import masking\nimport jax'),
    ('algorithms/x.py', 'from jaxrl_llm.rl import masking\nfrom jaxrl_llm.training import step'),
    ('tasks/x.py', 'from jaxrl_llm.data import batching\nfrom jaxrl_llm.rewards import units'),
])
def test_the_layer_rule_allows(name, source):
  assert not _layer_offences(name, ast.parse(source), 'jaxrl_llm.' + name.split('/')[0])


def _study(path):
  """The study that a file of experiments/ belongs to: its directory, or its own name."""
  return path.relative_to(REPOSITORY / 'experiments').parts[0].removesuffix('.py')


def _study_offences(study, tree):
  """Imports of experiments that a file of `study` may not make."""
  for line, imported, _ in _imports(tree):
    parts = imported.split('.')
    if parts[0] != 'experiments' or len(parts) < 2:
      continue
    if '__main__' in parts or study == 'configs' and parts[1] in PROGRAMS:
      yield f'{line} imports the program {imported}'
    elif study != 'configs' and parts[1] != study:
      yield f'{line} imports another study: {imported}'


def test_no_study_imports_another_and_no_module_imports_a_program():
  offences = [
      f'{path.relative_to(REPOSITORY)}:{offence}'
      for path in BINARIES for offence in _study_offences(_study(path), _tree(path))]
  assert not offences, '\n'.join(offences)


@pytest.mark.parametrize('source', [
    'from experiments.rebel import batches', 'from experiments import sft',
    'from experiments.refuel import __main__', 'def f():\n  import experiments.sft'])
def test_the_study_rule_catches(source):
  assert list(_study_offences('refuel', ast.parse(source)))
  assert not list(_study_offences('refuel', ast.parse('from experiments.refuel import batches')))


@pytest.mark.parametrize('source', [
    'from experiments import sft', 'from experiments.rebel import __main__'])
def test_the_study_rule_catches_programs_in_configs(source):
  assert list(_study_offences('configs', ast.parse(source)))
  assert not list(_study_offences('configs', ast.parse('from experiments.rebel import config')))


def test_imports_have_no_cycle():
  names = {'.'.join(path.relative_to(REPOSITORY).with_suffix('').parts): path
           for path in SOURCES + BINARIES}
  arrows = {name: {imported for _, imported, _ in _imports(_tree(path), _package(path))
                   if imported in names} for name, path in names.items()}
  while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
    for name in leaves:
      del arrows[name]
  assert not arrows, f'these import each other: {", ".join(sorted(arrows))}'


def test_single_file_programs_are_short():
  offences = [f'{path.name} has {_lines(path)} lines: give it a directory'
              for path in (REPOSITORY / 'experiments').glob('*.py') if _lines(path) > 150]
  assert not offences, '\n'.join(offences)


def _library_offences(name, tree):
  """Imports of libraries that the file `name` may not make."""
  for line, imported, _ in _imports(tree):
    library = imported.split('.')[0]
    if library in ONLY_IN and not name.startswith(ONLY_IN[library]):
      yield f'{name}:{line} imports {library}: allowed in {ONLY_IN[library]}'


def test_libraries_are_imported_only_where_allowed():
  offences = [o for path in SOURCES + BINARIES for o in _library_offences(_name(path), _tree(path))]
  assert not offences, '\n'.join(offences)


@pytest.mark.parametrize('name, library', [
    ('rl/x.py', 'optax'), ('experiments/sft.py', 'optax'), ('experiments/rebel/x.py', 'flax'),
    ('runs/x.py', 'torch')])
def test_the_library_rule_catches(name, library):
  assert list(_library_offences(name, ast.parse(f'import {library}')))
  assert not list(_library_offences('training/x.py', ast.parse('import optax')))


def test_slow_libraries_are_imported_in_functions():
  offences = [
      f'{_name(path)}:{line} imports {imported} at module level: too slow'
      for path in SOURCES if not _name(path).startswith(HEAVY_EXCEPTIONS)
      for line, imported, top in _imports(_tree(path), _package(path))
      if top and imported.split('.')[0] in HEAVY]
  assert not offences, '\n'.join(offences)


def test_tables_use_the_standard_library_only():
  allowed = {*sys.stdlib_module_names, 'jaxrl_llm'}
  offences = [
      f'{_name(path)}:{line} imports {imported}'
      for path in SOURCES if _name(path).startswith('tables/')
      for line, imported, _ in _imports(_tree(path), _package(path))
      if imported.split('.')[0] not in allowed]
  assert not offences, '\n'.join(offences)


def test_host_folders_compute_with_numpy():
  # types.py names jax.Array; beyond that, rewards, tasks and data never touch a device.
  offences = [
      f'{_name(path)}:{line} imports {imported}'
      for path in SOURCES if _name(path).startswith(('rewards/', 'tasks/', 'data/'))
      for line, imported, _ in _imports(_tree(path), _package(path))
      if imported.split('.')[0] in ('jax', 'jaxlib')]
  assert not offences, '\n'.join(offences)


def test_jit_is_used_at_the_edge_only():
  offences = []
  for path in SOURCES:
    if _name(path).startswith(('evaluation/', 'runs/', 'training/step')):
      continue
    for node in ast.walk(_tree(path)):
      if isinstance(node, ast.Attribute) and ast.unparse(node) in ('jax.jit', 'jax.pmap'):
        offences.append(f'{_name(path)}:{node.lineno} {ast.unparse(node)}')
    offences += [f'{_name(path)}:{line} {imported}' for line, imported, _ in
                 _imports(_tree(path)) if imported in ('jax.jit', 'jax.pmap')]
  assert not offences, '\n'.join(offences)


def _impurities(tree):
  for line, imported, _ in _imports(tree):
    if imported.split('.')[0] in IMPURE_MODULES:
      yield line, imported
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_CALLS:
      yield node.lineno, ast.unparse(node.func)
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ('np.random', 'numpy.random'):
      yield node.lineno, 'np.random'
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ('jax.debug.print',):
      yield node.lineno, 'jax.debug.print'


def test_the_core_has_no_print_clock_file_or_global_randomness():
  offences = [
      f'{_name(path)}:{line} {what}'
      for path in SOURCES if _name(path).startswith(PURE)
      for line, what in _impurities(_tree(path))]
  assert not offences, '\n'.join(offences)


@pytest.mark.parametrize('source', [
    'print(1)', 'import time', 'def f():\n  import random', 'np.random.normal()', 'open("x")',
    'from os import path', 'jax.debug.print("x")'])
def test_the_purity_rule_catches(source):
  assert list(_impurities(ast.parse(source)))


# --- Cost of imports.


def _loaded_by(statement):
  """Returns the top-level packages that `statement` loads in a fresh interpreter."""
  program = f'import sys\n{statement}\nprint(*sorted({{n.split(".")[0] for n in sys.modules}}))'
  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
  result = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True, check=False,
      cwd=REPOSITORY, env=environment, timeout=120)
  assert result.returncode == 0, result.stderr[-2000:]
  return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
  loaded = _loaded_by('import jaxrl_llm, jaxrl_llm.types')
  assert 'jax' in loaded
  assert not loaded & (HEAVY | {'flax', 'orbax', 'optax'})


def test_importing_the_main_job_loads_neither_torch_nor_tensorflow():
  loaded = _loaded_by('import experiments.a_star_po.__main__')
  assert 'optax' in loaded
  assert not loaded & {'torch', 'tensorflow', 'tensorflow_datasets', 'transformers'}


# --- Sizes.


def _documentation(node):
  """Returns the number of lines of a function's docstring."""
  first = node.body[0]
  if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
    return first.end_lineno - first.lineno + 1 if isinstance(first.value.value, str) else 0
  return 0


def _nested(node):
  """Yields the outermost functions and classes defined inside `node`."""
  for child in ast.iter_child_nodes(node):
    if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      yield child
    else:
      yield from _nested(child)


def _own_lines(node):
  """Returns the lines of a function without its docstring and inner functions."""
  length = lambda n: n.end_lineno - n.lineno + 1
  return length(node) - _documentation(node) - sum(length(child) for child in _nested(node))


def _lines(path):
  return len(path.read_text(encoding='utf-8').splitlines())


def test_files_are_short():
  limit = lambda path: 300 if path.parent.name == 'algorithms' else 500
  offences = [f'{path.relative_to(REPOSITORY)} has {_lines(path)} lines, {limit(path)} are too many'
              for path in SOURCES + BINARIES if _lines(path) >= limit(path)]
  assert not offences, '\n'.join(offences)
  assert statistics.median(_lines(path) for path in SOURCES if _lines(path) > 1) < 200


def test_functions_are_short():
  offences = []
  for path in SOURCES + BINARIES:
    for node in ast.walk(_tree(path)):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _own_lines(node) >= 60:
        where = f'{path.relative_to(REPOSITORY)}:{node.lineno}'
        offences.append(f'{where} {node.name} has {_own_lines(node)} lines, 60 are too many')
  assert not offences, '\n'.join(offences)


def test_own_lines_exclude_docstrings_and_inner_functions():
  source = textwrap.dedent('''
      def outer():
        """One.

        Two."""
        x = 1
        def inner():
          return x
        if x:
          def other():
            return 2
        return inner
  ''')
  outer = ast.parse(source).body[0]
  assert [_own_lines(node) for node in (outer, *_nested(outer))] == [4, 2, 2]
