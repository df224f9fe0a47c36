"""Tiny checkpoints of a policy and a reward model, real preferences, and configs to run them."""

import dataclasses
import functools
import json
import pathlib
import tempfile

import jax
import numpy as np

from experiments.rebel import config as rebel_config
from experiments.rebel import stages as rebel_stages
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.models import configs, policy, value
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import launch, policy_evaluation, reward_config, reward_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import checkpoints, metrics, optim
from tests.experiments import tiny

SHAPE = {'num_layers': 2, 'width': 16, 'mlp_width': 16, 'max_length': 1024, 'tie_embeddings': False}
PROMPT, RESPONSE = 224, 40  # Tokens, which are bytes.


def write(folder, data_dir, **options):
  """FOLDER/policy, FOLDER/reward, and the real preferences with short prompts."""
  config = tiny.write_checkpoint(folder / 'policy', template=tiny.TEMPLATE, **SHAPE)
  write_reward(folder / 'reward', config, tokenizer_from=folder / 'policy', **options)
  rows = json.loads((data_dir / 'preferences' / 'dpo_en_demo.json').read_text())
  length = lambda row: sum(len(message['value'].encode()) for message in row['conversations'])
  short = [row for row in rows if length(row) <= 160]
  (folder / 'pairs.json').write_text(json.dumps(short))
  return folder


def write_reward(
    directory, config, *, tokenizer_from=None, outputs=1, seed=1, model_type='qwen2'):
  """A sequence classifier of the policy's shape."""
  generator = np.random.default_rng(seed)
  abstract = jax.eval_shape(value.make(config, num_outputs=outputs).init, jax.random.key(0))
  params = jax.tree.map(
      lambda leaf: generator.normal(scale=0.5, size=leaf.shape).astype(leaf.dtype), abstract)
  params['value_head']['bias'] *= 0
  huggingface.save(
      directory, config, params, model_type=model_type, role='value',
      tokenizer_from=tokenizer_from)


def task(**options):
  return preferences.Config(
      files='pairs.json', num_evaluation=8, max_prompt_tokens=PROMPT,
      max_response_tokens=RESPONSE, **options)


def _common(folder):
  return dict(
      data_dir=str(folder), task=task(), sft=config_lib.SftConfig(steps=0),
      policy_init_from=str(folder / 'policy'), reward_init_from=str(folder / 'reward'),
      evaluation=reward_config.RebelEvaluation(
          num_samples=1, temperature=1.0, batch_size=8, num_shown=2, head_chunk=0),
      batch_size=8, save_every=2,
  )


def online(folder, **changes):
  """A run of the online pipeline in seconds, with its batches on two of the fake devices."""
  algorithm = rebel.Config(
      temperature=1.0, kl_coefficient=0.01, head_chunk=0, num_epochs=2,
      **changes.pop('algorithm', {}))
  return rebel_config.Online(**{
      **_common(folder), 'algorithm': algorithm, 'steps': 4, 'eval_every': 2,
      'mesh': mesh_lib.MeshConfig(data=2),
      'optimizer': optim.OptimizerConfig(learning_rate=1e-3, schedule='linear'), **changes})


def large_batch(folder, **changes):
  """A run of the large-batch pipeline in seconds."""
  algorithm = rebel.Config(
      temperature=1.0, kl_coefficient=0.0, head_chunk=0, num_epochs=1, samples_per_prompt=3,
      pairs='best_worst', **changes.pop('algorithm', {}))
  return rebel_config.LargeBatch(**{
      **_common(folder), 'algorithm': algorithm, 'rounds': 2, 'generation_batch_size': 16,
      'keep_truncated': True, 'eval_every': 2, 'save_every': 3,
      'optimizer': optim.OptimizerConfig(learning_rate=1e-3),
      'reward': reward_config.RewardConfig(eos_check='off', missing_stop_penalty=0.0),
      **changes})


_FOLDER = tempfile.TemporaryDirectory()  # Removed when the process ends.


def launched(config, workdir=None, experiment='rebel', overrides=()):
  """The run that a command would make of a config, by default in a directory of its own."""
  workdir = workdir or pathlib.Path(tempfile.mkdtemp(dir=_FOLDER.name))
  return launch.Run(config, workdir, experiment, 'tiny', 'tiny.py', overrides, 'commit')


def build(config):
  """The setup of a run that trains a policy."""
  return setup_lib.build(
      launched(config), lora=config.lora, last_layers=config.train_last_layers)


def with_config(setup, config):
  """A copy of a setup with another config."""
  return dataclasses.replace(setup, run=launched(config, setup.run.workdir))


def run(main, config, workdir, experiment='rebel', overrides=()):
  """Runs a program's main on a config, as its command would."""
  config.validate()
  workdir.mkdir(parents=True, exist_ok=True)
  main(launched(config, workdir, experiment, overrides))


class Killed(BaseException):
  """Simulates a kill."""


def dying(function, count):
  """The function, which raises `Killed` after its `count`-th call."""
  calls = []

  @functools.wraps(function)
  def wrapped(*arguments, **options):
    outcome = function(*arguments, **options)
    calls.append(None)
    if len(calls) == count:
      raise Killed
    return outcome

  return wrapped


def outcome(workdir):
  """Everything that must be equal, bit for bit, in two runs of one config."""
  timeless = lambda record: {
      name: x for name, x in record.items()
      if name not in ('wall_seconds', 'commit', 'sha256')
      and not name.startswith(('time/', 'memory/'))}
  lines = lambda name: [timeless(r) for r in metrics.read_jsonl(workdir / name)]
  read = {'results': timeless(json.loads((workdir / 'results.json').read_text()))}
  for path in sorted(workdir.rglob('*.jsonl')):
    read[str(path.relative_to(workdir))] = lines(path.relative_to(workdir))
  return read


def load_params(directory):
  """Parameters of a directory of either kind on the host."""
  if huggingface.is_checkpoint(directory):
    checkpoint = huggingface.read_config(directory)
    abstract = jax.eval_shape(policy.make(checkpoint.config).init, jax.random.key(0))
    return huggingface.load_params(checkpoint, abstract)
  model = configs.TransformerConfig(**checkpoints.read_metadata(directory)['model'])
  abstract = jax.eval_shape(policy.make(model).init, jax.random.key(0))
  return checkpoints.load_params(directory, abstract)[0]


def moved(before, after, layers=2):
  """Paths of the leaves that differ, with separate blocks."""
  split = lambda tree: {**tree, 'layers': {
      str(i): jax.tree.map(lambda leaf, i=i: leaf[i], tree['layers']) for i in range(layers)}}
  pairs = jax.tree.map(lambda x, y: bool(np.any(np.asarray(x) != np.asarray(y))),
                       split(before), split(after))
  return {jax.tree_util.keystr(path, simple=True, separator='/')
          for path, differs in jax.tree_util.tree_leaves_with_path(pairs) if differs}


def changed(config, path, new):
  """A copy of a config with one field changed: 'algorithm.eta'."""
  head, _, rest = path.partition('.')
  if not rest:
    return dataclasses.replace(config, **{head: new})
  return dataclasses.replace(config, **{head: changed(getattr(config, head), rest, new)})


def share_programs(patch):
  """Shares compiled functions between runs of equal configs, as compiling dominates the time."""
  made = {}

  def shared(holder, name, key):
    original = getattr(holder, name)

    def wrapped(*arguments, **options):
      config = (name, repr(key(*arguments, **options)))
      if config not in made:
        made[config] = original(*arguments, **options)
      return made[config]

    patch.setattr(holder, name, wrapped)

  def network(setup):
    return setup.model, setup.finetuning.lora, setup.finetuning.last_layers

  shared(setup_lib.Setup, 'sampler', lambda setup, **options: (
      network(setup), options, setup.task.max_response_tokens))
  shared(setup_lib.Setup, 'scorer', lambda setup, **options: (
      network(setup), options, setup.task.max_response_tokens))
  shared(policy_evaluation, 'divergence', lambda setup: (
      network(setup), setup.config.algorithm, setup.config.evaluation.head_chunk))
  shared(reward_models, 'id_scorer', lambda model, lora=None: (model, lora))
  shared(rebel_stages, 'generator', lambda setup: (
      network(setup), setup.config.algorithm, setup.config.top_p, setup.task.max_response_tokens))
  start = setup_lib.Setup.start

  def shared_start(setup, algorithm, params, **options):
    state, train_step = start(setup, algorithm, params, **options)
    config = setup.config
    key = repr((network(setup), config.algorithm, config.optimizer, config.steps))
    return state, made.setdefault(key, train_step)

  patch.setattr(setup_lib.Setup, 'start', shared_start)
