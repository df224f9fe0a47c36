"""A base model learns a chat template whose turns end with their own token."""

import json
import shutil

import numpy as np
import pytest
from absl import flags

from experiments import sft
from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate_main
from experiments.generate import __main__ as generate
from jaxrl_llm.data import tokenizers
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.runs import checkpoint_sources, conversion
from jaxrl_llm.training import checkpoints
from tests.experiments import tiny

OPEN, CLOSE = '<|im_start|>', '<|im_end|>'
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIGS = tiny.REPOSITORY / 'experiments' / 'configs'


def sft_run(folder, workdir, policy, *more):
  """Fine-tunes on the conversations; returns the exit status."""
  return tiny.run(
      sft.main, f'--config={CONFIGS / "sft_chat.py"}:pretrained', f'--config.data_dir={folder}',
      f'--config.policy_init_from={policy}', '--config.task.files=chat.jsonl',
      '--config.task.num_evaluation=8', '--config.task.max_prompt_tokens=40',
      '--config.task.max_response_tokens=40', '--config.sft.steps=60', '--config.sft.batch_size=8',
      '--config.sft.packed_length=0', '--config.sft.algorithm.num_micro_batches=1',
      '--config.sft.optimizer.warmup_steps=0', '--config.sft.optimizer.learning_rate=0.03',
      '--config.evaluation.batch_size=8', '--config.model.compute_dtype=float32',
      '--config.sft.save_every=100', f'--workdir={workdir}', *more, experiment='sft')


def tool(module, *arguments):
  values = flags.FlagValues()
  module.define_flags(values)
  values([module.__name__, *map(str, arguments)])
  module.main(values)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A base checkpoint (texts and turns end with different tokens), and conversations."""
  folder = tmp_path_factory.mktemp('stop_tokens')
  tiny.write_checkpoint(folder / 'base', template=CHATML, more=(OPEN, CLOSE), num_layers=1)
  rows = [{'messages': [{'role': 'user', 'content': f'{i}?'},
                        {'role': 'assistant', 'content': 'yes'}]} for i in range(40)]
  (folder / 'chat.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


@pytest.fixture(scope='module')
def trained(folder):
  """WORKDIR/params of a run whose config has the stop token of turns."""
  assert sft_run(folder, folder / 'run', folder / 'base', f'--config.task.stop_tokens={CLOSE}') == 0
  return folder / 'run' / 'params'


def test_a_missing_stop_token_is_named(folder, tmp_path, capsys):
  assert sft_run(folder, tmp_path / 'run', folder / 'base') == 2
  error = capsys.readouterr().err
  assert 'is not a stop token of the tokenizer' in error and 'config.task.stop_tokens' in error


def test_stop_tokens_are_saved_with_the_parameters(folder, trained, tmp_path, capsys):
  base = tokenizers.load_tokenizer(folder / 'base')
  close = base.backend.token_to_id(CLOSE)
  source = checkpoint_sources.read(str(trained), field='--policy')
  assert (source.stop_ids, source.stop_tokens) == ((close,), (CLOSE,))

  # The tokenizer is still that of the base, but samples stop as in training.
  assert source.tokenizer_dir == str(folder / 'base') and base.stop_ids != (close,)
  out = tmp_path / 'samples.jsonl'
  tool(generate, f'--policy={trained}', '--prompt=7?', '--nostream', '--temperature=0',
       f'--out={out}', '--max_tokens=20')
  record = json.loads(out.read_text())
  assert (record['response'], record['stop_reason']) == ('yes', 'stop')
  assert record['tokens'][-1] == close

  # A run from these parameters needs no stop tokens in its config.
  capsys.readouterr()
  assert sft_run(folder, tmp_path / 'more', trained, '--config.sft.steps=1') == 0
  assert checkpoints.read_metadata(tmp_path / 'more' / 'params')['stop_ids'] == [close]


def test_stop_tokens_survive_a_conversion_to_hugging_face_and_back(folder, trained, tmp_path):
  tool(convert, f'--from={trained}', f'--to={tmp_path / "out"}')
  read = lambda name: json.loads((tmp_path / 'out' / name).read_text())
  close = tokenizers.load_tokenizer(folder / 'base').backend.token_to_id(CLOSE)
  assert read('generation_config.json')['eos_token_id'] == close
  assert read('config.json')['eos_token_id'] == close
  assert read('tokenizer_config.json')['eos_token'] == CLOSE
  assert read('tokenizer_config.json')['chat_template'] == CHATML
  assert tokenizers.load_tokenizer(tmp_path / 'out').stop_ids == (close,)
  tool(convert, f'--from={tmp_path / "out"}', f'--to={tmp_path / "again"}')
  assert checkpoint_sources.read(str(tmp_path / 'again'), field='').stop_ids == (close,)
  out = tmp_path / 'samples.jsonl'
  tool(generate, f'--policy={tmp_path / "out"}', '--prompt=7?', '--nostream', '--temperature=0',
       f'--out={out}', '--max_tokens=20')
  assert json.loads(out.read_text())['response'] == 'yes'


def test_evaluation_uses_the_saved_stop_tokens(folder, trained, tmp_path):
  (tmp_path / 'problems.jsonl').write_text(json.dumps({'prompt': '7?', 'answer': 'yes'}) + '\n')
  assert tiny.run(
      evaluate_main.main, f'--config={CONFIGS / "evaluate_jsonl.py"}',
      f'--config.data_dir={tmp_path}',
      '--config.task.files=problems.jsonl', f'--config.policy_init_from={trained}',
      '--config.task.reward=exact', '--config.task.max_prompt_tokens=40',
      '--config.task.max_response_tokens=20', '--config.num_samples=1', '--config.temperature=0',
      '--config.batch_size=8', '--config.chat_template=auto', f'--workdir={tmp_path / "run"}',
      experiment='evaluate') == 0
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert results['eval/pass@1'] == 1 and results['eval/truncated'] == 0


def test_parameters_with_an_earlier_kind_of_fingerprint_load(folder, trained, tmp_path):
  # That fingerprint included stop and pad ids, which were not saved.
  source = conversion.read(str(trained), field='')
  base = tokenizers.load_tokenizer(folder / 'base')
  metadata = checkpoints.read_metadata(trained)
  metadata['tokenizer'] = base.full_fingerprint
  assert metadata['tokenizer'] != base.fingerprint

  for name in ('stop_ids', 'stop_tokens'):
    del metadata[name]
  checkpoints.save_params(tmp_path / 'old', conversion.load(source), metadata)
  directory, tokenizer = conversion.find_tokenizer(
      conversion.read(str(tmp_path / 'old'), field=''), '')
  assert directory == str(folder / 'base') and tokenizer.stop_ids == base.stop_ids

  # Unknown stop tokens are an error.
  metadata['tokenizer'] = tokenizers.load_tokenizer(
      folder / 'base', stop_tokens=[CLOSE]).full_fingerprint
  checkpoints.save_params(tmp_path / 'older', conversion.load(source), metadata)
  with pytest.raises(ValueError, match='was trained with another tokenizer .*: give its own'):
    tool(generate, f'--policy={tmp_path / "older"}', '--prompt=x', f'--tokenizer={folder / "base"}')


def test_a_run_whose_base_was_replaced_is_refused(folder, trained, tmp_path, capsys):
  base, run = tmp_path / 'base', tmp_path / 'run'
  shutil.copytree(folder / 'base', base)
  options = (f'--config.task.stop_tokens={CLOSE}', '--config.sft.steps=2',
             '--config.sft.save_every=1')
  assert sft_run(folder, run, base, *options) == 0

  (run / 'results.json').unlink()
  assert sft_run(folder, run, base, *options) == 0  # Unchanged: the run resumes.
  checkpoint = huggingface.read_config(base)
  params = tiny.params(checkpoint.config)
  params = {**params, 'final_norm': {'scale': 2 * params['final_norm']['scale']}}
  shutil.rmtree(base)
  huggingface.save(base, checkpoint.config, params, model_type='qwen2',
                   tokenizer_from=folder / 'base')
  for without in ('results.json', 'params'):  # After and during training.
    path = run / without
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    capsys.readouterr()
    assert sft_run(folder, run, base, *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if 'error' in line]
    assert len(errors) == 1 and 'holds other parameters' in errors[0] and str(base) in errors[0]

  assert np.isfinite(params['final_norm']['scale']).all()
