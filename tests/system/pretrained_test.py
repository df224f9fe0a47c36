"""Runs from directories of parameters: ours and Hugging Face checkpoints, with adapters."""

import json

import jax
import numpy as np
import pytest

from jaxrl_llm.models import configs, lora, partial, policy
from jaxrl_llm.models.pretrained import huggingface, peft
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.training import checkpoints
from tests.system import running


def _load(folder):
  """(config, parameters) of a directory that a run wrote."""
  model = configs.TransformerConfig(**checkpoints.read_metadata(folder)['model'])
  abstract = jax.eval_shape(policy.make(model).init, jax.random.key(0))
  return model, checkpoints.load_params(folder, abstract)[0]


def _largest_change(before, after):
  """For each parameter by path, the largest change."""
  paths = jax.tree_util.tree_leaves_with_path(
      jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), before, after))
  return {jax.tree_util.keystr(path, simple=True, separator='/'): value for path, value in paths}


@pytest.fixture(scope='module')
def checkpoint(whole, tmp_path_factory):
  """The reference of the uninterrupted run as a Hugging Face checkpoint."""
  folder = tmp_path_factory.mktemp('checkpoint') / 'llama'
  model, params = _load(whole.workdir / 'params')
  huggingface.save(folder, model, params, model_type='llama')
  return folder


def test_a_hugging_face_checkpoint_and_our_own_directory_give_the_same_run(
    runner, whole, checkpoint, tmp_path):
  # The directory decides the shape, not the config.
  theirs = runner.finish(
      tmp_path / 'theirs', f'--config.policy_init_from={checkpoint}', '--config.steps=3')
  assert theirs.returncode == 0, theirs.stderr
  assert '(llama)' in theirs.stdout
  ours = runner.finish(
      tmp_path / 'ours', f'--config.policy_init_from={whole.workdir / "params"}',
      '--config.steps=3')
  assert ours.returncode == 0, ours.stderr
  one, two = running.results(tmp_path / 'theirs'), running.results(tmp_path / 'ours')
  for name in ('fingerprint/reference', 'eval/trained/pass@1', 'eval/trained/kl_to_reference',
               'sampled_tokens'):
    assert one[name] == two[name]


def test_the_reference_can_have_its_own_directory(runner, whole, checkpoint, tmp_path):
  done = runner.finish(
      tmp_path / 'run', f'--config.policy_init_from={whole.workdir / "trained"}',
      f'--config.reference_init_from={checkpoint}', '--config.steps=2')
  assert done.returncode == 0, done.stderr
  results = running.results(tmp_path / 'run')
  assert results['fingerprint/reference'] == running.results(whole.workdir)['fingerprint/reference']
  # The policy starts where the other run ended, away from its reference.
  first = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[0])
  assert first['eval/kl_to_reference'] == pytest.approx(
      running.results(whole.workdir)['eval/trained/kl_to_reference'], rel=1e-4)


def test_only_adapters_are_trained_and_then_merged(runner, checkpoint, whole, tmp_path):
  arguments = [
      f'--config.policy_init_from={checkpoint}', '--config.steps=6', '--config.lora.rank=2',
      '--config.lora.targets=attention/query|mlp/.*',
  ]
  done = runner.finish(tmp_path / 'run', *arguments)
  assert done.returncode == 0, done.stderr

  _, before = _load(whole.workdir / 'params')
  _, after = _load(tmp_path / 'run' / 'trained')
  changes = _largest_change(before, after)
  moved = {name for name, change in changes.items() if change > 0}
  assert moved == {
      f'layers/{name}/kernel' for name in ('attention/query', 'mlp/up', 'mlp/gate', 'mlp/down')
  }

  # The exported adapters are those that were merged.
  lora_config = lora.LoraConfig(rank=2, targets='attention/query|mlp/.*')
  model, _ = _load(whole.workdir / 'params')
  adapters = peft.load(tmp_path / 'run' / 'adapters', model, model_type='llama')[1]
  merged = lora.merge({'base': before, 'adapters': adapters}, lora_config)
  assert max(_largest_change(merged, after).values()) < 1e-6

  adapter_config = json.loads((tmp_path / 'run' / 'adapters' / 'adapter_config.json').read_text())
  assert adapter_config['base_model_name_or_path'] == str(checkpoint)
  # A run from there does not have the checkpoint as its base.
  chained = runner.finish(
      tmp_path / 'chained', f'--config.policy_init_from={tmp_path / "run" / "trained"}',
      '--config.steps=1', '--config.lora.rank=2')
  assert chained.returncode == 0, chained.stderr

  config_file = tmp_path / 'chained' / 'adapters' / 'adapter_config.json'
  assert json.loads(config_file.read_text())['base_model_name_or_path'] is None
  killed = runner.finish(tmp_path / 'killed', *arguments, die=['checkpoint', 1])
  assert killed.returncode != 0

  again = runner.finish(tmp_path / 'killed', *arguments)
  assert again.returncode == 0, again.stderr
  running.assert_same(tmp_path / 'killed', tmp_path / 'run')


def test_only_the_last_layers_are_trained_and_a_tied_head_is_untied(runner, tmp_path):
  shape = ['--config.model.num_layers=2']
  done = runner.finish(tmp_path / 'sft', *shape, experiment='sft')
  assert done.returncode == 0, done.stderr

  params = tmp_path / 'sft' / 'params'
  done = runner.finish(
      tmp_path / 'run', '--config.model.tie_embeddings=False',
      f'--config.policy_init_from={params}', '--config.train_last_layers=1', '--config.steps=3')
  assert done.returncode == 0, done.stderr

  before, after = partial.untie(_load(params)[1]), _load(tmp_path / 'run' / 'trained')[1]
  changes = _largest_change(before, after)
  assert changes['embedder/embedding'] == 0
  assert all(changes[name] > 0 for name in ('head/kernel', 'final_norm/scale'))

  first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree['layers'])
  assert not any(_largest_change(first(before), first(after)).values())
  last = lambda tree: jax.tree.map(lambda leaf: leaf[1], tree['layers'])
  assert all(_largest_change(last(before), last(after)).values())


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--config.reward_init_from=.'], ['unknown field config.reward_init_from']),
    (['--config.reference_init_from=.'], ['needs config.policy_init_from', "'.'"]),
    (['--config.policy_init_from=tests'], ['neither parameters', 'tests']),
    (['--config.lora.rank=2', '--config.lora.targets=mlp/middle'], ['targets', 'mlp/middle']),
    (['--config.lora.rank=2', '--config.lora.targets=head'], ['tied', 'embedding']),
    (['--config.lora.alpha=3'], ['alpha', '3.0', 'rank=0']),
    (['--config.train_last_layers=1'], ['tie_embeddings']),
    (['--config.train_last_layers=1', '--config.lora.rank=1'], ['train_last_layers', '1']),
])
def test_bad_input_is_one_line(tmp_path, arguments, words):
  done = running.refuse(tmp_path / 'run', *arguments)
  running.assert_one_line(done, *words)


def test_a_checkpoint_without_a_tokenizer_is_refused(
    runner, checkpoint, data_dir, tmp_path):
  for experiment, config, folder in (
      ('sft', 'sft_gsm8k', 'gsm8k'), ('a_star_po', 'a_star_po_gsm8k', 'gsm8k'),
      ('sft', 'sft_chat', 'preferences')):
    done = runner.command(
        experiment, f'--config={running.REPOSITORY}/experiments/configs/{config}.py',
        f'--config.policy_init_from={checkpoint}', f'--config.data_dir={data_dir / folder}',
        cwd=tmp_path)
    running.assert_one_line(done, 'no tokenizer in', '--config.task.tokenizer_dir=DIR')


def test_fine_tuning_fields_are_refused_if_the_policy_is_loaded(checkpoint, tmp_path):
  done = running.refuse(
      tmp_path / 'run', f'--config.policy_init_from={checkpoint}', '--config.sft.steps=3')
  running.assert_one_line(done, 'config.sft.steps has no effect', 'policy_init_from')


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes(
    runner, checkpoint, tmp_path):
  # Two digits and another padding: more characters than the checkpoint has rows.
  rows = huggingface.read_config(checkpoint).config.vocab_size
  small = tmp_path / 'small'
  model = huggingface.read_config(checkpoint).config
  smaller = configs.TransformerConfig(**{**vars(model), 'vocab_size': rows - 3})
  params = policy.make(smaller).init(jax.random.key(0))
  huggingface.save(small, smaller, params, model_type='llama')
  done = runner.finish(tmp_path / 'run', f'--config.policy_init_from={small}')
  running.assert_one_line(done, f'the tokenizer has {rows} ids', f'only {rows - 3} rows')


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_meshes_load_the_same_numbers(shape, tmp_path):
  from jaxrl_llm.runs import checkpoint_sources
  from jaxrl_llm.runs import setup as setup_lib

  model = configs.TransformerConfig(
      vocab_size=16, width=16, num_heads=8, num_kv_heads=8, head_dim=2, mlp_width=16)
  params = policy.make(model).init(jax.random.key(0))
  huggingface.save(tmp_path / 'hf', model, params, model_type='llama')
  source = checkpoint_sources.read(str(tmp_path / 'hf'), field='config.policy_init_from')
  mesh = mesh_lib.make_mesh(*shape)
  abstract = setup_lib.abstract_params(policy.make(model), mesh)
  with jax.set_mesh(mesh):  # As in a run.
    loaded = source.load(abstract)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), loaded, params)
  jax.tree.map(lambda x, a: x.sharding == a.sharding or pytest.fail(str(a)), loaded, abstract)
