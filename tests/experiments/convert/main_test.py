"""Conversion in both directions, with tokenizers and special ids; one-line errors."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags

from experiments.convert import __main__ as convert
from jaxrl_llm.data import chat_templates, tokenizers
from jaxrl_llm.models import value
from jaxrl_llm.models.pretrained import huggingface, weights
from jaxrl_llm.runs import checkpoint_sources, conversion
from jaxrl_llm.training import checkpoints
from tests.experiments import tiny
from tests.models.pretrained import gguf_files


def main(source, target, *more):
  values = flags.FlagValues()
  convert.define_flags(values)
  values(['convert', f'--from={source}', f'--to={target}', *map(str, more)])
  convert.main(values)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('convert')
  for dtype in ('float32', 'bfloat16'):
    tiny.write_checkpoint(folder / dtype, dtype=dtype, template=tiny.TEMPLATE,
                          tie_embeddings=dtype == 'float32')
  return folder


def tensors(directory):
  reader = weights.Reader(directory)
  return {name: reader[name] for name in reader.tensors}


def assert_same_tensors(one, two):
  one, two = tensors(one), tensors(two)
  assert one.keys() == two.keys()
  for name, tensor in one.items():
    assert tensor.dtype == two[name].dtype, name
    np.testing.assert_array_equal(tensor.view(np.uint8), two[name].view(np.uint8), name)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_round_trip_gives_the_same_checkpoint(folder, tmp_path, dtype, capsys):
  there, ours, back = folder / dtype, tmp_path / 'ours', tmp_path / 'back'
  fields = json.loads((there / 'config.json').read_text()) | {
      'bos_token_id': 1, 'eos_token_id': 0}
  (there / 'config.json').write_text(json.dumps(fields))
  main(there, ours)
  main(ours, back)
  assert f'{ours} -> {back}: hugging_face, policy, {dtype}' in capsys.readouterr().out
  assert_same_tensors(there, back)
  assert json.loads((back / 'config.json').read_text()) == fields

  for name in ('tokenizer.json', 'tokenizer_config.json'):
    assert (back / name).read_bytes() == (there / name).read_bytes()
  assert not (back / 'generation_config.json').exists()

  # What runs compare.
  source = checkpoint_sources.read(str(ours), field='--policy')
  assert source.tokenizer == tokenizers.load_tokenizer(there).fingerprint
  assert source.model == huggingface.read_config(there).config

  params = conversion.load(conversion.read(str(ours), field=''))
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}


def test_the_dtype_can_be_changed(folder, tmp_path):
  main(folder / 'bfloat16', tmp_path / 'ours', '--dtype=float32')
  assert conversion.stored_dtype(
      checkpoint_sources.read(str(tmp_path / 'ours'), field='')) == 'float32'
  main(tmp_path / 'ours', tmp_path / 'back', '--dtype=bfloat16')  # Nothing was lost.
  assert_same_tensors(folder / 'bfloat16', tmp_path / 'back')
  main(folder / 'float32', tmp_path / 'half', '--dtype=bfloat16', '--format=hugging_face')
  for name, tensor in tensors(folder / 'float32').items():
    np.testing.assert_array_equal(tensor.astype('bfloat16'), tensors(tmp_path / 'half')[name])


def test_a_run_of_this_project_becomes_a_checkpoint(folder, tmp_path, capsys):
  config = tiny.write_ours(tmp_path / 'ours', 'abc', attention_bias=False)
  with pytest.raises(ValueError, match=r'--model_type must be one of .*gpt2.*llama.*qwen2'):
    main(tmp_path / 'ours', tmp_path / 'theirs')
  main(tmp_path / 'ours', tmp_path / 'theirs', '--model_type=llama')
  assert 'no tokenizer was copied' in capsys.readouterr().out

  checkpoint = huggingface.read_config(tmp_path / 'theirs')
  assert (checkpoint.model_type, checkpoint.role) == ('llama', 'policy')
  source = conversion.read(str(tmp_path / 'theirs'), field='')
  loaded, expected = jax.tree.leaves(conversion.load(source)), jax.tree.leaves(tiny.params(config))
  for one, two in zip(loaded, expected, strict=True):
    np.testing.assert_array_equal(one, two)
  with pytest.raises(ValueError, match="model_type must be one of .*, got 'mistral7'"):
    main(tmp_path / 'ours', tmp_path / 'other', '--model_type=mistral7')
  with pytest.raises(ValueError, match='was trained with another tokenizer'):
    main(tmp_path / 'ours', tmp_path / 'other', '--model_type=llama',
         f'--tokenizer={folder / "float32"}')
  assert not (tmp_path / 'other').exists()


def test_a_reduced_tokenizer_is_not_copied(tmp_path, capsys):
  tiny.write_reduced(tmp_path / 'ours', tmp_path / 'base', attention_bias=False)
  main(tmp_path / 'ours', tmp_path / 'theirs', '--model_type=llama',
       f'--tokenizer={tmp_path / "base"}')
  assert ('no tokenizer was copied: transformers cannot read a reduced one'
          in capsys.readouterr().out)
  assert not (tmp_path / 'theirs' / 'tokenizer.json').exists()

  generation = json.loads((tmp_path / 'theirs' / 'generation_config.json').read_text())
  known = checkpoint_sources.read(str(tmp_path / 'ours'), field='')
  assert generation['eos_token_id'] == known.stop_ids[0]

  # Our own folder keeps what it knows, with the tokenizer at hand or without.
  assert known.kept_ids
  for name, more in (('alone', ()), ('named', (f'--tokenizer={tmp_path / "base"}',))):
    main(tmp_path / 'ours', tmp_path / name, '--format=orbax', '--dtype=bfloat16', *more)
    again = checkpoint_sources.read(str(tmp_path / name), field='')
    for field in ('tokenizer', *checkpoint_sources.TOKENIZER_METADATA):
      assert getattr(again, field) == getattr(known, field), field


def test_special_ids_of_a_run_from_scratch_are_written(folder, tmp_path):
  config = tiny.write_ours(tmp_path / 'characters', 'abc', attention_bias=False)
  main(tmp_path / 'characters', tmp_path / 'one', '--model_type=llama')
  read = lambda folder, name='config': json.loads(
      (tmp_path / folder / f'{name}.json').read_text())

  # No tokenizer is known, but what ends a response is. Llama's class has other ids of its own.
  assert 'eos_token_id' not in read('one')
  metadata = checkpoints.read_metadata(tmp_path / 'characters') | {'stop_ids': [1]}
  checkpoints.save_params(tmp_path / 'characters', tiny.params(config), metadata)
  main(tmp_path / 'characters', tmp_path / 'two', '--model_type=llama')
  assert (read('two')['eos_token_id'], read('two')['bos_token_id']) == (1, None)
  assert read('two', 'generation_config') == {'eos_token_id': 1}

  size = tiny.write_tokenizer(tmp_path / 'tokenizer', start=True)
  config = tiny.shape(size)
  tokenizer = tokenizers.load_tokenizer(tmp_path / 'tokenizer')
  checkpoints.save_params(
      tmp_path / 'ours', tiny.params(
          config), checkpoint_sources.identity(tokenizer.fingerprint, config))
  main(tmp_path / 'ours', tmp_path / 'three', '--model_type=qwen2',
       f'--tokenizer={tmp_path / "tokenizer"}')
  ids = {'eos_token_id': 0, 'pad_token_id': 0, 'bos_token_id': 1}
  assert read('three').items() >= ids.items() and read('three', 'generation_config') == ids


def test_the_context_length_of_the_checkpoint_is_restored(tmp_path):
  tiny.write_checkpoint(tmp_path / 'there', num_layers=1)
  main(tmp_path / 'there', tmp_path / 'ours')
  params = conversion.load(conversion.read(str(tmp_path / 'ours'), field=''))
  metadata = checkpoints.read_metadata(tmp_path / 'ours')
  for length, expected in ((16, 128), (500, 500)):
    metadata['model']['max_length'] = length
    checkpoints.save_params(tmp_path / 'run', params, metadata)
    main(tmp_path / 'run', tmp_path / f'{length}')
    fields = json.loads((tmp_path / f'{length}' / 'config.json').read_text())
    assert fields['max_position_embeddings'] == expected


@pytest.mark.parametrize(('fields', 'line'), [
    ({'id2label': -1}, 'id2label must be an object, got -1'),
    ({'id2label': True}, 'id2label must be an object, got True'),
    ({'num_labels': 'x'}, "num_labels must be a positive integer, got 'x'"),
    ({'num_labels': 0}, 'num_labels must be a positive integer, got 0'),
    ({'num_labels': [2]}, r'num_labels must be a positive integer, got \[2\]'),
])
def test_damaged_labels_are_one_line_errors(tmp_path, fields, line):
  tiny.write_checkpoint(tmp_path / 'there', num_layers=1)
  path = tmp_path / 'there' / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))
  with pytest.raises(ValueError, match=f'config.json: {line}'):
    main(tmp_path / 'there', tmp_path / 'ours')


def test_a_damaged_tokenizer_is_ignored_if_another_is_named(folder, tmp_path):
  shutil.copytree(folder / 'float32', tmp_path / 'there')
  (tmp_path / 'there' / 'tokenizer.json').write_text('{"model": ')
  with pytest.raises(ValueError, match='is not a complete tokenizer.json'):
    main(tmp_path / 'there', tmp_path / 'ours')
  main(tmp_path / 'there', tmp_path / 'ours', f'--tokenizer={folder / "float32"}')
  source = checkpoint_sources.read(str(tmp_path / 'ours'), field='')
  assert source.tokenizer == tokenizers.load_tokenizer(folder / 'float32').fingerprint


def test_the_head_of_a_sequence_classifier_is_converted(tmp_path):
  config = tiny.shape(32)
  abstract = jax.eval_shape(value.make(config, num_outputs=3).init, jax.random.key(0))
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
  params['value_head']['kernel'] = np.arange(48, dtype=np.float32).reshape(3, 16)
  huggingface.save(tmp_path / 'there', config, params, model_type='qwen2', role='value')
  main(tmp_path / 'there', tmp_path / 'ours')
  main(tmp_path / 'ours', tmp_path / 'back')
  assert_same_tensors(tmp_path / 'there', tmp_path / 'back')
  assert huggingface.read_config(tmp_path / 'back').role == 'value'


def test_a_removed_checkpoint_has_no_tokenizer(folder, tmp_path, capsys):
  gone = tmp_path / 'gone'
  main(folder / 'float32', gone, '--format=hugging_face')
  main(gone, tmp_path / 'ours')
  for path in sorted(gone.iterdir()):
    path.unlink()
  main(tmp_path / 'ours', tmp_path / 'back')
  assert 'no tokenizer was copied' in capsys.readouterr().out
  main(tmp_path / 'ours', tmp_path / 'again', f'--tokenizer={folder / "float32"}')
  assert (tmp_path / 'again' / 'tokenizer.json').exists()


@pytest.mark.parametrize(('source', 'target', 'more', 'line'), [
    ('', 'new', [], '--from=DIR and --to=DIR are required'),
    ('float32', '', [], '--from=DIR and --to=DIR are required'),
    ('absent', 'new', [], '--from: not a directory'),
    ('.', 'new', [], 'neither parameters'),
    ('float32', 'bfloat16', [], '--to must be a new or empty directory, got'),
    ('float32', 'float32/config.json', [], '--to must be a new or empty directory, got'),
    ('float32', 'new', ['--tokenizer=absent'], 'absent'),
    ('float32', 'new', ['--format=hugging_face', '--model_type=gpt2'], 'gpt2'),
])
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, source, target, more, line):
  before = sorted(os.listdir(folder))
  path_of = lambda name: folder / name if name not in ('', 'new') else name and tmp_path / name
  with pytest.raises(ValueError) as error:
    main(path_of(source), path_of(target), *more)
  assert line in str(error.value) and '\n' not in str(error.value)
  assert sorted(os.listdir(folder)) == before and not os.listdir(tmp_path)


def test_a_tokenizer_that_is_too_large_is_refused_with_both_sizes(folder, tmp_path):
  size = tiny.write_tokenizer(tmp_path / 'large', characters=None, start=True)
  config = tiny.shape(size - 1)
  checkpoints.save_params(
      tmp_path / 'ours', tiny.params(config), checkpoint_sources.identity('', config))
  line = f'has {size} ids and the embedding in {tmp_path / "ours"} only {size - 1} rows'
  with pytest.raises(ValueError, match=line):
    main(tmp_path / 'ours', tmp_path / 'theirs', '--model_type=qwen2',
         f'--tokenizer={tmp_path / "large"}')


# --- GGUF files.


def write_gguf(folder, **changes):
  """Writes a checkpoint without a tokenizer, and a GGUF file of it with one; returns the file."""
  tokenizer = gguf_files.byte_tokenizer(pre='qwen2', more=('<eot>',))
  config = tiny.shape(len(tokenizer['tokenizer.ggml.tokens']))
  huggingface.save(folder / 'there', config, tiny.params(config), model_type='qwen2')
  fields = json.loads((folder / 'there' / 'config.json').read_text())
  metadata = gguf_files.sizes_of('qwen2', fields) | tokenizer | {
      'tokenizer.chat_template': tiny.TEMPLATE, 'tokenizer.ggml.eot_token_id': 2} | changes
  gguf_files.write(folder / 'model.gguf', 'qwen2', metadata, gguf_files.tensors_of(
      folder / 'there', 'qwen2', fields))
  return folder / 'model.gguf'


def test_a_gguf_file_becomes_a_checkpoint(tmp_path, capsys):
  path = write_gguf(tmp_path)
  main(path, tmp_path / 'back')
  assert f'{path} -> {tmp_path / "back"}: hugging_face, policy, float32' in capsys.readouterr().out
  assert_same_tensors(tmp_path / 'there', tmp_path / 'back')

  source = checkpoint_sources.read(str(tmp_path / 'back'), field='')
  assert source.load_tokenizer().stop_ids == (0, 2)
  template = chat_templates.load(tmp_path / 'back')
  assert template.render([{'role': 'user', 'content': 'x'}]) == '<start>[user]x<end>'
  main(tmp_path / 'back', tmp_path / 'ours')  # It is a checkpoint like others.
  main(path, tmp_path / 'half', '--dtype=bfloat16')
  assert huggingface.read_config(tmp_path / 'half').fields['torch_dtype'] == 'bfloat16'


def test_the_tokenizer_of_a_gguf_file_can_be_replaced(folder, tmp_path):
  path = write_gguf(tmp_path, **{'tokenizer.ggml.pre': 'tekken'})
  with pytest.raises(ValueError, match=r"got 'tekken' \(--tokenizer can name another tokenizer\)"):
    main(path, tmp_path / 'back')
  main(path, tmp_path / 'back', f'--tokenizer={folder / "float32"}')
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    assert (tmp_path / 'back' / name).read_bytes() == (folder / 'float32' / name).read_bytes()
  tiny.write_tokenizer(tmp_path / 'large', more=('<a>', '<b>', '<c>', '<d>'))
  with pytest.raises(ValueError, match='has 261 ids and the embedding in .* only 260 rows'):
    main(path, tmp_path / 'other', f'--tokenizer={tmp_path / "large"}')
  assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(('more', 'line'), [
    (['--format=orbax'], '--format must be hugging_face for a GGUF file, got orbax'),
    (['--model_type=llama'], '--model_type must be qwen2 for'),
])
def test_flags_that_do_not_fit_a_gguf_file(tmp_path, more, line):
  path = write_gguf(tmp_path)
  with pytest.raises(ValueError, match=line):
    main(path, tmp_path / 'back', *more)


def test_a_damaged_gguf_file_is_one_line(tmp_path):
  path = write_gguf(tmp_path)
  content = path.read_bytes()
  for changed, line in ((content[:-500], 'is truncated in tensor'), (content[:900], 'truncated'),
                        (b'x' + content, 'is not a GGUF file')):
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=line) as caught:
      main(path, tmp_path / 'back')
    assert '\n' not in str(caught.value)
  assert not (tmp_path / 'back').exists()


def test_other_programs_name_the_conversion(tmp_path):
  path = write_gguf(tmp_path)
  with pytest.raises(ValueError, match='--policy must be a directory, got a GGUF file: convert it'):
    checkpoint_sources.read(str(path), field='--policy')


def test_the_command(folder, tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'experiments.convert', f'--from={folder / "float32"}',
       f'--to={tmp_path / "ours"}', '--dtype=float16'],
      cwd=tiny.REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 2 and done.stdout == ''
  assert done.stderr.startswith('convert: error: flag --dtype=float16: ')
  assert len(done.stderr.strip().splitlines()) == 1
