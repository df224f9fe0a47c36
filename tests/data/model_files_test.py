"""Precedence among the small JSON files of a model."""

import json

import pytest

from jaxrl_llm.data import model_files
from jaxrl_llm.data.model_files import AddedToken


def _write(folder, **documents):
  for name, fields in documents.items():
    (folder / f'{name}.json').write_text(json.dumps(fields))


def test_an_empty_directory_defines_nothing(tmp_path):
  files = model_files.read(tmp_path)
  assert (files.config, files.names, files.numbered, files.unnumbered) == ({}, {}, {}, ())
  assert files.model_stop_ids == () and files.model_type == ''


def test_names_and_added_tokens(tmp_path):
  _write(
      tmp_path,
      tokenizer_config={
          'bos_token': None, 'eos_token': {'content': '<e>', 'lstrip': True}, 'add_eos_token': True,
          'image_token': '<i>', 'extra_special_tokens': ['<x>', '<e>'],
          'added_tokens_decoder': {
              '9': {'content': '<b>', 'special': False}, '5': {'content': '<x>', 'special': True}},
      },
      special_tokens_map={'eos_token': '<old>', 'pad_token': '<p>'},
      added_tokens={'<unread>': 3},
  )

  files = model_files.read(tmp_path)
  # With added_tokens_decoder the map only adds names.
  assert files.names == {'eos_token': '<e>', 'pad_token': '<p>', 'image_token': '<i>'}
  assert list(files.numbered) == [5, 9]
  assert files.numbered[9] == AddedToken('<b>', special=False, normalized=True)
  assert set(files.unnumbered) == {
      AddedToken('<p>'), AddedToken('<i>'), AddedToken('<e>', lstrip=True)}


def test_old_files(tmp_path):
  _write(
      tmp_path,
      tokenizer_config={'eos_token': '<new>', 'additional_special_tokens': ['<a>']},
      special_tokens_map={'eos_token': '<old>'},
      added_tokens={'<a>': 8, '<b>': 7},
  )
  files = model_files.read(tmp_path)
  assert files.names == {'eos_token': '<old>'}
  assert files.numbered == {
      7: AddedToken('<b>', special=False, normalized=True), 8: AddedToken('<a>')}
  _write(tmp_path, tokenizer_config={'extra_special_tokens': {'image_token': '<i>'}})
  assert model_files.read(tmp_path).names == {'eos_token': '<old>', 'image_token': '<i>'}


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('tokenizer_config', '{"a": 1', 'tokenizer_config.json is not complete JSON'),
        ('generation_config', '[1]', 'generation_config.json must contain a JSON object, got list'),
        ('config', '{"eos_token_id": [true]}', r'config.json: eos_token_id must be ids, got \[T'),
        ('special_tokens_map', '{"eos_token": {}}', 'a token must be a text or an object with'),
        ('tokenizer_config', '{"additional_special_tokens": 5}',
         'additional_special_tokens must be a list of tokens, got int'),
        ('added_tokens', '{"a": "x"}', 'ids of added tokens must be integers'),
        ('added_tokens', '{"a": [1]}', r'ids of added tokens must be integers, got \[1\]'),
        ('added_tokens', '{"a": true}', 'ids of added tokens must be integers, got True'),
        ('added_tokens', '{"a": 1.5}', 'ids of added tokens must be integers, got 1.5'),
    ],
)
def test_damage_is_one_line(name, content, message, tmp_path):
  (tmp_path / f'{name}.json').write_text(content)
  with pytest.raises(ValueError, match=message) as error:
    model_files.read(tmp_path)
  assert '\n' not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
  with pytest.raises(ValueError, match='cannot read the file .*none: No such file'):
    model_files.read_bytes(tmp_path / 'none')
