"""Adapters against PEFT, live: it loads what we save, and we load what it saves.

The models are those of tests/golden/model_cases.py; the weights are drawn from the date.
"""

import datetime
import os

import jax
import numpy as np
import peft as their_peft
import pytest
import safetensors.torch
import torch

from jaxrl_llm.models import lora, policy
from jaxrl_llm.models.pretrained import peft
from tests.golden import draws, jax_models, torch_models

SEED = int(os.environ.get('JAXRL_LLM_PARITY_SEED', datetime.date.today().strftime('%Y%m%d')))
RECORDS = {name: jax_models.reseeded(record, SEED)
           for name, record in jax_models.records().items() if not record['classifier']}
CONFIGS = {
    'everywhere': lora.LoraConfig(rank=3, alpha=5.0, targets='(attention|mlp)/.*|head'),
    'some': lora.LoraConfig(rank=2, alpha=4.0, targets='attention/(query|value)|mlp/down'),
}
TARGETS = {  # A module of several kernels, one of one, and a head.
    'gpt2': ['c_attn', 'mlp.c_proj', 'lm_head'],
    'gpt_neox': ['query_key_value', 'dense_4h_to_h', 'lm_head'],
}
each_case = pytest.mark.parametrize(
    'record', RECORDS.values(), ids=[f'{name}-seed{SEED}' for name in RECORDS])


def _loaded(record, directory):
  """(their model, our checkpoint, our parameters) of the same weights."""
  draws.write_checkpoint(directory, record['fields'], jax_models.weights(record))
  return torch_models.load(directory), *jax_models.load(directory)


def _assert_same(record, theirs, checkpoint, params, lora_config):
  """Compares the logits of both adapted models, and checks that the adapters change them."""
  model = lora.make(policy.make(checkpoint.config), lora_config)
  tokens, mask, positions = batch = jax_models.batch(record, left=True)

  @jax_models.compiled
  def ours(params):
    output = model.apply(params, tokens, positions=positions, valid=mask)
    logits = output.hidden @ output.head.kernel.T
    cap = output.head.softcap
    return cap * jax.numpy.tanh(logits / cap) if cap else logits

  expected = torch_models.logits(theirs, *batch)
  gap = lambda logits: float(np.max(np.abs(logits - expected)[mask]))
  assert gap(ours(params)) <= 1e-4
  assert gap(ours(lora.without_adapters(params))) > 1e-2


@each_case
@pytest.mark.parametrize('name', CONFIGS)
def test_peft_loads_what_we_save(record, name, tmp_path):
  theirs, checkpoint, base = _loaded(record, tmp_path / 'base')
  rng = np.random.default_rng(SEED)
  draw = lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype(np.float32)
  adapters = jax.tree.map(draw, lora.init_adapters(CONFIGS[name], base, jax.random.key(0)))
  peft.save(tmp_path / 'adapters', adapters, CONFIGS[name], checkpoint.config,
            model_type=checkpoint.model_type, base=str(tmp_path / 'base'))
  adapted = their_peft.PeftModel.from_pretrained(theirs, tmp_path / 'adapters')
  # Every tensor was loaded.
  loaded = their_peft.get_peft_model_state_dict(adapted)
  for tensor, values in safetensors.torch.load_file(
      tmp_path / 'adapters' / 'adapter_model.safetensors').items():
    assert torch.equal(loaded[tensor], values), tensor
  _assert_same(
      record, adapted, checkpoint, {'base': base, 'adapters': adapters}, CONFIGS[name])


CASES = [(name, {}) for name in RECORDS] + [
    (name, options) for name in ('gpt2', 'llama3_2') for options in (
        {'use_rslora': True}, {'alpha_pattern': {'down_proj': 7, 'c_proj': 7}},
        {'layers_to_transform': [1]}, {'exclude_modules': r'.*\.0\..*'},
        {'rank_pattern': {r'1\..*(c_attn|q_proj)': 2, 'down_proj': 3}})]


@pytest.mark.parametrize(
    'name, options', CASES, ids=[f'{"-".join([name, *opts])}-seed{SEED}' for name, opts in CASES])
def test_we_load_what_peft_saves(name, options, tmp_path):
  record = RECORDS[name]
  theirs, checkpoint, base = _loaded(record, tmp_path / 'base')
  targets = TARGETS.get(checkpoint.model_type, ['q_proj', 'down_proj', 'lm_head'])
  torch.manual_seed(SEED)
  adapted = their_peft.get_peft_model(theirs, their_peft.LoraConfig(
      r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, lora_dropout=0.1,
      task_type='CAUSAL_LM', **options))
  adapted.save_pretrained(tmp_path / 'adapters')
  lora_config, adapters = peft.load(
      tmp_path / 'adapters', checkpoint.config, model_type=checkpoint.model_type)
  assert 'head' in adapters
  _assert_same(
      record, adapted.eval(), checkpoint, {'base': base, 'adapters': adapters}, lora_config)
