"""Fine-tunes a checkpoint with a real tokenizer, converts it, loads it again and evaluates it."""

import json

import jax
import numpy as np
import pytest

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs, policy
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.training import metrics
from tests.system import running

# GPT-2 has one special token, which ends its replies.
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}<|endoftext|>\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
_SHAPES = {
    'gpt2': dict(
        norm='layer', norm_epsilon=1e-5, positions='learned', activation='gelu', num_kv_heads=2,
        attention_bias=True, output_bias=True, mlp_bias=True),
    'qwen2': dict(num_kv_heads=1, attention_bias=True, rope_theta=1e6),
}


def _write_checkpoint(folder, family, tokenizer_dir):
  """The smallest decoder of a family with its real tokenizer."""
  config = configs.TransformerConfig(**{
      'vocab_size': tokenizers.load_tokenizer(tokenizer_dir).vocab_size, 'num_layers': 1,
      'width': 8, 'num_heads': 2, 'head_dim': 4, 'mlp_width': 16, 'max_length': 128,
      **_SHAPES[family]})
  params = policy.make(config).init(jax.random.key(0))
  huggingface.save(folder, config, params, model_type=family, tokenizer_from=tokenizer_dir)
  if family == 'gpt2':
    (folder / 'chat_template.jinja').write_text(_TEMPLATE)


@pytest.mark.parametrize('family', _SHAPES)
def test_fine_tune_convert_load_and_evaluate(runner, data_dir, tmp_path, family):
  checkpoint = tmp_path / 'checkpoint'
  _write_checkpoint(checkpoint, family, data_dir / 'tokenizers' / family)
  rows = json.loads((data_dir / 'preferences' / 'alpaca_en_demo.json').read_text())[:40]
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data' / 'chat.json').write_text(json.dumps(rows))
  (tmp_path / 'data' / 'sums.jsonl').write_text(''.join(
      json.dumps({'prompt': f'What is {i} + 1?', 'answer': str(i + 1)}) + '\n' for i in range(3)))
  config = lambda name: f'--config={running.REPOSITORY / "experiments" / "configs" / name}.py'

  done = runner.command(
      'sft', config('sft_chat') + ':pretrained', f'--config.policy_init_from={checkpoint}',
      f'--config.data_dir={tmp_path / "data"}', '--config.task.files=chat.json',
      f'--config.task.template={"auto" if family == "gpt2" else "chatml"}',
      '--config.task.num_evaluation=4', '--config.task.max_prompt_tokens=63',
      '--config.task.max_response_tokens=64', '--config.sft.packed_length=128',
      '--config.sft.steps=4', '--config.sft.batch_size=2', '--config.sft.algorithm.head_chunk=32',
      '--config.sft.algorithm.num_micro_batches=1', '--config.sft.optimizer.warmup_steps=0',
      '--config.sft.optimizer.learning_rate=0.01', '--config.evaluation.batch_size=2',
      '--config.model.compute_dtype=float32', '--config.model.max_length=128',
      '--config.sft.loss_on=all', '--config.sft.mixture=chat.json=1',
      f'--workdir={tmp_path / "sft"}', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'packed into' in done.stdout
  results = running.results(tmp_path / 'sft')
  assert results['eval/trained/loss'] < results['eval/initial/loss'] - 0.01

  done = runner.command(
      'convert', f'--from={tmp_path / "sft" / "params"}', f'--to={tmp_path / "out"}',
      cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  before, after = (huggingface.read_config(tmp_path / name) for name in ('checkpoint', 'out'))
  assert before.config == after.config
  weights = [huggingface.load_params(
      each, jax.eval_shape(policy.make(each.config).init, jax.random.key(0)))
             for each in (before, after)]
  changed = jax.tree.map(lambda x, y: np.abs(x - y).max() > 0, *weights)
  assert all(jax.tree.leaves(changed['layers']))

  numbers = {}
  for name, source in (('hugging_face', tmp_path / 'out'), ('ours', tmp_path / 'sft' / 'params')):
    done = runner.command(
        'evaluate', config('evaluate_jsonl'), f'--config.policy_init_from={source}',
        # Both directories record their tokenizer.
        f'--config.task.files={tmp_path / "data" / "sums.jsonl"}',
        '--config.task.max_prompt_tokens=24', '--config.task.max_response_tokens=4',
        '--config.num_samples=2', '--config.batch_size=3',
        f'--workdir={tmp_path / name}', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    numbers[name] = running.results(tmp_path / name)
    _, *responses = metrics.read_jsonl(tmp_path / name / 'responses.jsonl')
    numbers[name]['responses'] = [  # The digests cover the first line, which names the policy.
        {key: value for key, value in line.items() if key != 'sha256'} for line in responses]
  for name in ('eval/pass@1', 'eval/length', 'eval/greedy_accuracy', 'responses'):
    assert numbers['hugging_face'][name] == numbers['ours'][name]
  assert numbers['ours']['eval/problems'] == 3
