"""Errors of fine-tuning are one line."""

import pytest

from experiments import sft
from tests.experiments import tiny


@pytest.fixture
def folder(data_dir, tmp_path):
  """The first problems of GSM8K next to the real tokenizers."""
  folder = tmp_path / 'data' / 'gsm8k'
  folder.mkdir(parents=True)
  for split in ('train', 'test'):
    lines = (data_dir / 'gsm8k' / f'{split}.jsonl').read_text().split('\n')
    (folder / f'{split}.jsonl').write_text('\n'.join(lines[:40]))
  (folder.parent / 'tokenizers').symlink_to(data_dir / 'tokenizers')
  return folder


def test_demonstrations_are_all_too_long(folder, tmp_path, capsys):
  configs = tiny.REPOSITORY / 'experiments' / 'configs'
  assert tiny.run(
      sft.main, f'--config={configs / "sft_gsm8k.py"}', f'--config.data_dir={folder}',
      '--config.task.max_response_tokens=8', f'--workdir={tmp_path / "run"}',
      '--config.task.num_train=0', '--config.task.num_evaluation=0', experiment='sft') == 2
  error = capsys.readouterr().err.strip()
  assert '\n' not in error
  assert 'gsm8k has no demonstrations: 40 are too long (config.task.max_response_tokens)' in error
