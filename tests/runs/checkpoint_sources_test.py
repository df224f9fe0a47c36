"""Directories that a policy is read from: adapters merged into their base, and refusals."""

import json

import jax
import numpy as np
import pytest

from jaxrl_llm.models import lora, policy
from jaxrl_llm.models.pretrained import peft
from jaxrl_llm.runs import checkpoint_sources, conversion
from tests.experiments import tiny

LORA = lora.LoraConfig(rank=3, alpha=6.0, targets='attention/(query|output)|mlp/down')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A checkpoint and random adapters for it, as `peft` would save them."""
  folder = tmp_path_factory.mktemp('sources')
  config = tiny.write_checkpoint(folder / 'base', template=tiny.TEMPLATE)
  rng = np.random.default_rng(0)
  adapters = lora.init_adapters(LORA, tiny.params(config), jax.random.key(0))
  adapters = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), adapters)
  peft.save(folder / 'adapters', adapters, LORA, config, model_type='qwen2',
            base=str(folder / 'base'))
  return folder


def _rewrite(folder, to, **changes):
  path = to / 'adapter_config.json'
  to.mkdir()
  for file in (folder / 'adapters').iterdir():
    (to / file.name).write_bytes(file.read_bytes())
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return to


def test_adapters_are_merged_into_their_base(folder):
  base = conversion.read(str(folder / 'base'), field='--policy')
  merged = conversion.read(str(folder / 'adapters'), field='--policy')
  assert merged.source.tokenizer_dir == str(folder / 'base') and merged.model == base.model
  assert merged.source.describe() == (
      f'from {folder / "base"} (qwen2), with the adapters in {folder / "adapters"}')

  plain, params = conversion.load(base), conversion.load(merged)
  _, adapters = peft.load(folder / 'adapters', base.model, model_type='qwen2')
  for name, sub, is_adapted in (
      ('attention', 'query', True), ('attention', 'key', False), ('mlp', 'down', True)):
    kernels = [np.asarray(tree['layers'][name][sub]['kernel']) for tree in (plain, params)]
    expected = kernels[0]
    if is_adapted:
      pair = adapters['layers'][name][sub]
      expected = expected + 2.0 * np.einsum('nir,nro->nio', pair['lora_a'], pair['lora_b'])
    np.testing.assert_allclose(kernels[1], expected, atol=1e-5)
    assert is_adapted == bool(np.abs(kernels[1] - kernels[0]).max() > 0.1)

  # The same outputs as adapters next to the kernels.
  model, tokens = policy.make(base.model), np.arange(6)[None]
  inputs = {'positions': tokens, 'valid': np.ones((1, 6), bool)}
  attached = lora.make(model, LORA).apply({'base': plain, 'adapters': adapters}, tokens, **inputs)
  np.testing.assert_allclose(
      model.apply(params, tokens, **inputs).hidden, attached.hidden, atol=2e-4)


def test_adapters_with_a_tokenizer_of_their_own(folder, tmp_path):
  own = _rewrite(folder, tmp_path / 'own')
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (own / name).write_bytes((folder / 'base' / name).read_bytes())
  source = checkpoint_sources.read(str(own), field='--policy')
  assert source.tokenizer_dir == source.hugging_face['directory'] == str(own)


@pytest.mark.parametrize(('changes', 'line'), [
    ({'base_model_name_or_path': None}, 'holds adapters that do not name their base: write the'),
    ({'base_model_name_or_path': 'Org/M'}, "adapters of 'Org/M', which is not a directory here: "),
    ({'base_model_name_or_path': '{folder}/adapters'}, 'must be a Hugging Face checkpoint, got'),
    ({'r': 0}, 'r must be'),
    ({'use_dora': True}, 'use_dora'),
])
def test_adapters_without_a_usable_base_are_refused(folder, tmp_path, monkeypatch, changes, line):
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'cache'))
  if changes.get('base_model_name_or_path') == '{folder}/adapters':
    tiny.write_ours(tmp_path / 'ours', '012=')
    changes = {'base_model_name_or_path': str(tmp_path / 'ours')}
  path = _rewrite(folder, tmp_path / 'changed', **changes)
  with pytest.raises(ValueError) as error:
    checkpoint_sources.read(str(path), field='config.policy_init_from')
  assert line in str(error.value) and str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_folders_without_parameters_get_a_hint(tmp_path):
  snapshot = tmp_path / 'models--Org--M' / 'snapshots' / '0a1b'
  snapshot.mkdir(parents=True)
  with pytest.raises(ValueError, match=f"--policy: no parameters in .* cache: give {snapshot}$"):
    checkpoint_sources.read(str(tmp_path / 'models--Org--M'), field='--policy')
  with pytest.raises(ValueError, match='--policy: not a directory: .* hf download Org/Missing'):
    checkpoint_sources.read('Org/Missing', field='--policy')
  # A snapshot is a checkpoint like any other.
  tiny.write_checkpoint(tmp_path / 'policy')
  for file in (tmp_path / 'policy').iterdir():
    (snapshot / file.name).symlink_to(file)
  assert checkpoint_sources.read(str(snapshot), field='--policy').tokenizer
