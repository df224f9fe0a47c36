"""Our models against transformers' logits, stored in tests/golden/models/ (no torch needed).

Each golden case is written as the directory that transformers would have written, loaded and run.
tests/parity/models_test.py compares live.
"""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrl_llm.models.pretrained import huggingface
from tests.golden import draws, jax_models, model_cases

TOLERANCE = 1e-4
RECORDS = jax_models.records()
CONTROLS = [(record, control) for record in RECORDS.values() for control in record['controls']]
# Controls that change our config: all of them are read, and one of each kind is run.
OF_CONFIG = [(record, control) for record, control in CONTROLS if control.get('ours')]
KINDS = {tuple(control['ours']): (record, control) for record, control in reversed(OF_CONFIG)}

each_case = pytest.mark.parametrize('record', RECORDS.values(), ids=list(RECORDS))


def _ids(pairs):
  return [f'{record["name"]}-{control["name"]}'.replace(' ', '_') for record, control in pairs]


def _write(directory, record):
  return draws.write_checkpoint(directory, record['fields'], jax_models.weights(record))


def _gap(one, other):
  return float(np.max(np.abs(one - other)))


def _check_control(record, control, model, params, batch):
  """Checks that the control's logits equal those of transformers and differ from the case's."""
  logits = model.logits(*batch, params=params)
  golden, theirs = record['arrays'][''], record['arrays'][control['name']]
  mask = jax_models.batch(record, left=control['name'] in ('padding', 'positions'))[1]
  stored = lambda indices: jax_models.stored(record, logits, mask, indices)
  assert _gap(stored(model_cases.CONTROL_INDICES), theirs) <= TOLERANCE
  assert _gap(stored(model_cases.STORED_INDICES), golden) >= control['least']


def test_the_golden_files_are_those_of_the_cases():
  assert {case.name: case.fields for case in model_cases.CASES} == {
      name: record['fields'] for name, record in RECORDS.items()}
  for case in model_cases.CASES:
    names = [control['name'] for control in RECORDS[case.name]['controls']]
    assert [name for name in names if name not in ('padding', 'positions')] == [
        control.name for control in case.controls]


@each_case
def test_logits(record, tmp_path):
  checkpoint, params = jax_models.load(_write(tmp_path, record))
  model = jax_models.Model(checkpoint, params, scan_unroll=1)
  left, right = (jax_models.batch(record, left=side) for side in (True, False))
  golden = record['arrays']['']

  for tokens, mask, positions in (left, right):
    logits = model.logits(tokens, mask, positions)
    assert logits.dtype == np.float32
    stored = jax_models.stored(record, logits, mask, model_cases.STORED_INDICES)
    assert _gap(stored, golden) <= TOLERANCE
  if not record['classifier']:
    decoded = draws.at_tokens(model.decoded_logits(*left), left[1], model_cases.STORED_INDICES)
    assert _gap(decoded, golden) <= TOLERANCE

  for control in record['controls']:
    if control['name'] == 'padding':
      wrong = (left[0], np.ones_like(left[1]), left[2])
      _check_control(record, control, model, params, wrong)
    elif control['name'] == 'positions':
      slots = np.broadcast_to(np.arange(model_cases.WIDTH, dtype=np.int32), left[0].shape)
      _check_control(record, control, model, params, (left[0], left[1], slots))
    elif not control['ours']:
      changed = jax_models.control_weights(record, control)
      directory = draws.write_checkpoint(tmp_path / control['name'], record['fields'], changed)
      _check_control(record, control, model, jax_models.load(directory)[1], right)


@pytest.mark.parametrize('record, control', KINDS.values(), ids=_ids(KINDS.values()))
def test_logits_with_an_option_switched_off(record, control, tmp_path):
  if control['edit'] is None:
    fields = {**record['fields'], **control['fields']}
    directory = draws.write_checkpoint(
        tmp_path, fields, jax_models.control_weights(record, control))
    checkpoint, params = jax_models.load(directory)
    model = jax_models.Model(checkpoint, params, scan_unroll=1)
  else:  # Only our config has this field.
    checkpoint, params = jax_models.load(_write(tmp_path, record))
    model = jax_models.Model(checkpoint, params, scan_unroll=1, **control['ours'])
  _check_control(record, control, model, params, jax_models.batch(record, left=False))


@pytest.mark.parametrize('record, control', OF_CONFIG, ids=_ids(OF_CONFIG))
def test_an_option_of_config_json_is_one_of_ours(record, control, tmp_path):
  read = lambda fields: dataclasses.asdict(
      huggingface.read_config(draws.write_checkpoint(tmp_path, fields, {})).config)
  config = read(record['fields'])
  if control['edit'] is None:
    changed = read({**record['fields'], **control['fields']})
    assert {name: changed[name] for name in changed if changed[name] != config[name]} == (
        control['ours'])
  else:
    assert all(config[name] != value for name, value in control['ours'].items())


@each_case
def test_both_spellings_of_config_json_give_the_same_config(record, tmp_path):
  read = lambda fields: huggingface.read_config(draws.write_checkpoint(tmp_path, fields, {}))
  assert read(record['fields']).config == read(record['saved']).config


# Tensors that are not parameters, by family, under the names of the first layer.
BUFFERS = {
    'gpt2': {'h.0.attn.bias': np.ones((1, 1, 32, 32), np.uint8),
             'h.0.attn.masked_bias': np.float32(-1e4)},
    'gpt_neox': {'layers.0.attention.bias': np.ones((1, 1, 32, 32), bool),
                 'layers.0.attention.masked_bias': np.float32(-1e9),
                 'layers.0.attention.rotary_emb.inv_freq': np.ones(2, np.float32)},
    'others': {'layers.0.self_attn.rotary_emb.inv_freq': np.ones(6, np.float32)},
}
PREFIXES = {'gpt2': 'transformer.', 'gpt_neox': 'gpt_neox.', 'others': 'model.'}


@pytest.mark.parametrize('name', ['gpt2', 'pythia', 'llama2', 'llama3_2', 'qwen3', 'gemma2'])
@pytest.mark.parametrize('prefixed', [True, False])
def test_old_names_buffers_and_a_stored_tied_head(name, prefixed, tmp_path):
  record = RECORDS[name]
  kind = record['fields']['model_type']
  kind = kind if kind in BUFFERS else 'others'
  weights = jax_models.weights(record)
  if 'lm_head.weight' not in weights and 'embed_out.weight' not in weights:
    embedding = next(value for key, value in weights.items()
                     if key.endswith(('wte.weight', 'embed_tokens.weight')))
    weights['lm_head.weight'] = embedding.copy()
  weights |= {PREFIXES[kind] + key: np.asarray(value) for key, value in BUFFERS[kind].items()}
  if not prefixed:
    weights = {key.removeprefix(PREFIXES[kind]): value for key, value in weights.items()}
  expected = jax_models.load(_write(tmp_path / 'new', record))[1]
  params = jax_models.load(
      draws.write_checkpoint(tmp_path / 'old', record['fields'], weights))[1]
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@each_case
def test_load_save_load_is_exact(record, tmp_path):
  checkpoint, params = jax_models.load(_write(tmp_path / 'theirs', record))
  huggingface.save(
      tmp_path / 'ours', checkpoint.config, params, model_type=checkpoint.model_type,
      role=checkpoint.role, fields=checkpoint.fields)
  assert jax_models.file_bytes(tmp_path / 'ours') == jax_models.file_bytes(tmp_path / 'theirs')
  again, params_again = jax_models.load(tmp_path / 'ours')
  assert again.config == checkpoint.config
  assert again.architecture == record['fields']['architectures'][0]
  jax.tree.map(np.testing.assert_array_equal, params_again, params)
