"""Exported directories in transformers, live: the same ids, and the special ids of the run."""

import random
import re

import jax
import pytest
import transformers
from absl import flags

from experiments.convert import __main__ as convert
from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs, policy
from jaxrl_llm.runs import checkpoint_sources
from jaxrl_llm.training import checkpoints
from tests.golden import chat_cases
from tests.parity import tokenizers_test


def export(tokenizer_dir, tmp_path, model_type, *, stop_tokens=None):
  """Exports a run from scratch; returns (our tokenizer, theirs, the directory)."""
  tokenizer = tokenizers.load_tokenizer(tokenizer_dir, stop_tokens=stop_tokens)
  gpt2 = dict(norm='layer', norm_epsilon=1e-5, positions='learned', activation='gelu',
              num_kv_heads=2, output_bias=True, mlp_bias=True)
  config = configs.TransformerConfig(**{
      'vocab_size': tokenizer.vocab_size, 'num_layers': 1, 'width': 8, 'num_heads': 2,
      'num_kv_heads': 1, 'head_dim': 4, 'mlp_width': 16, 'max_length': 32,
      'attention_bias': model_type in ('gpt2', 'qwen2'),
      **(gpt2 if model_type == 'gpt2' else {})})

  checkpoints.save_params(
      tmp_path / 'ours', policy.make(config).init(jax.random.key(0)),
      {**checkpoint_sources.identity(
          tokenizer.fingerprint, config), **checkpoint_sources.tokenizer_metadata(tokenizer)})

  values = flags.FlagValues()
  convert.define_flags(values)
  values(['convert', f'--from={tmp_path / "ours"}', f'--to={tmp_path / "out"}',
          f'--model_type={model_type}', f'--tokenizer={tokenizer_dir}'])
  convert.main(values)
  return tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / 'out'), tmp_path / 'out'


def assert_same_ids(ours, theirs, *, plain=False):
  """Compares ids on random texts; `plain` texts have no leading space and no rare character."""
  generator = random.Random(tokenizers_test.SEED)
  random_texts = (tokenizers_test._text(generator) for _ in range(500))
  again = tokenizers.load_tokenizer(theirs.name_or_path)
  for text in [*chat_cases.TEXTS, '<|im_start|>user\nHi<|im_end|>\n<|endoftext|>', *random_texts]:
    if plain:
      text = 'x' + re.sub('[\u200d\x00\x7f]', '', text)
    ids = ours.encode(text)
    assert theirs(text, add_special_tokens=False)['input_ids'] == ids, (tokenizers_test.SEED, text)
    assert theirs(text)['input_ids'] == [*ours.start_ids, *ids]
    assert again.encode(text) == ids
    if theirs.unk_token_id not in ids or theirs.unk_token_id in ours.stop_ids:
      assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
  assert len(theirs) == ours.vocab_size
  assert theirs.eos_token_id == ours.stop_ids[0]


@pytest.mark.parametrize(('name', 'model_type'), [
    ('qwen2', 'qwen2'), ('qwen2', 'llama'), ('gpt2', 'gpt2'), ('gpt2', 'llama')])
def test_two_files_of_bytes(name, model_type, data_dir, tmp_path):
  ours, theirs, folder = export(data_dir / 'tokenizers' / name, tmp_path, model_type)
  assert_same_ids(ours, theirs)
  assert (theirs.pad_token_id, theirs.bos_token_id) == (ours.pad_id, None)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  stops = list(ours.stop_ids) if len(ours.stop_ids) > 1 else ours.stop_ids[0]
  for config in (model.config, model.generation_config):
    ids = (config.eos_token_id, config.pad_token_id, config.bos_token_id)
    assert ids == (stops, ours.pad_id, None)


def test_other_stop_ids(data_dir, tmp_path):
  ours, theirs, folder = export(
      data_dir / 'tokenizers' / 'qwen2', tmp_path, 'qwen2', stop_tokens=['<|im_end|>'])
  assert ours.stop_ids == (151645,)
  assert theirs.eos_token_id == 151645
  assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id == 151645


@pytest.mark.parametrize('name', ['llama3', 'llama2', 'old_files', 'gpt2'])
def test_tokenizers_with_their_own_token_names(name, data_dir, tmp_path):
  folder = chat_cases.write(name, tmp_path / 'in', data_dir / 'tokenizers')
  for path in folder.glob('generation_config.json'):
    path.unlink()
  ours, theirs, _ = export(folder, tmp_path, 'llama')
  assert_same_ids(ours, theirs)


def test_a_sentencepiece_model_of_no_class(data_dir, tmp_path):
  ours, theirs, _ = export(data_dir / 'tokenizers' / 'sentencepiece', tmp_path, 'llama')
  assert_same_ids(ours, theirs, plain=True)
