"""Samples are the same if streamed, batched or resumed; encoding of prompts; one-line errors."""

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
from experiments.generate import __main__ as generate
from jaxrl_llm.tasks import arithmetic
from tests.experiments import tiny

PROMPTS = [
    {'prompt': 'Grüße, '}, {'prompt': 'x', 'id': 'b'}, {'prompt': 'much longer than the others'},
    {'prompt': 'x'}, {'prompt': '12'},
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A checkpoint of bytes, one with a chat template and few tokens, and a file of prompts."""
  folder = tmp_path_factory.mktemp('generate')
  tiny.write_checkpoint(folder / 'bytes', start=True, num_layers=1)
  tiny.write_checkpoint(folder / 'chat', characters='0123456789[]aeinrstuy', start=True,
                        template=tiny.TEMPLATE, num_layers=1)
  (folder / 'prompts.jsonl').write_text('\n'.join(map(json.dumps, PROMPTS)))
  return folder


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
  """Shares samplers between equal calls of `main`."""
  monkeypatch.setattr(generate.Generator, 'sampler', _shared_sampler)


_SAMPLER, _MADE = generate.Generator.sampler, {}


def _shared_sampler(self):
  values = self.values
  setting = (values.policy, values.num_samples, self.max_tokens, values.temperature, values.mesh,
             *self.stops)
  return _MADE.setdefault(setting, _SAMPLER(self))


def main(*arguments):
  values = flags.FlagValues()
  generate.define_flags(values)
  values(['generate', *map(str, arguments)])
  generate.main(values)


def of_file(folder, out, *more):
  """Samples after the file's prompts, 2 each, in batches of 2; returns the records."""
  main(f'--policy={folder / "bytes"}', f'--prompts={folder / "prompts.jsonl"}', f'--out={out}',
       '--max_tokens=9', '--num_samples=2', '--batch_size=2', '--seed=3', *more)
  return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
  """Samples of the file, alone in their directory."""
  path = tmp_path_factory.mktemp('whole') / 'samples.jsonl'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generate.Generator, 'sampler', _shared_sampler)
    of_file(folder, path)
  return path


def test_a_file_gives_its_samples_in_order(folder, whole):
  records = [json.loads(line) for line in whole.read_text().splitlines()]
  assert [(r['id'], r['sample']) for r in records] == [
      (name, sample) for name in (0, 'b', 2, 3, 4) for sample in (0, 1)]
  assert [r['prompt'] for r in records[::2]] == [row['prompt'] for row in PROMPTS]

  generator = loaded(folder / 'bytes')
  tokenizer = generator.tokenizer
  for record in records:
    assert record['response'] == tokenizer.decode(record['tokens'])
    assert record['stop_reason'] in ('stop', 'length') and len(record['tokens']) <= 9
    assert (record['stop_reason'] == 'stop') == (record['tokens'][-1] in tokenizer.stop_ids)

  # Two samples differ, and so do two prompts that read the same.
  assert len({tuple(r['tokens']) for r in records}) == 10
  assert os.listdir(whole.parent) == ['samples.jsonl']

  # The log-probabilities are those of the model, after the start token.
  record = records[0]
  ids = [*tokenizer.start_ids, *tokenizer.encode(record['prompt']), *record['tokens']]
  output = jax.jit(generator.model.apply)(
      generator.params, np.array([ids]), positions=np.arange(len(ids))[None],
      valid=np.ones((1, len(ids)), bool))
  logits = np.asarray(output.hidden[0] @ output.head.kernel.T)[:-1]
  log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  log_probs = log_probs[np.arange(len(logits)), ids[1:]][-len(record['tokens']) :]
  assert record['log_prob'] == pytest.approx(log_probs.sum(), abs=1e-3)


def loaded(directory, *arguments):
  values = flags.FlagValues()
  generate.define_flags(values)
  values(['generate', f'--policy={directory}', *arguments])
  return generate.load(values)


def test_a_single_prompt_has_the_same_samples_as_in_a_file(folder, whole, tmp_path, capsys):
  records = [json.loads(line) for line in whole.read_text().splitlines()][:2]
  common = [f'--policy={folder / "bytes"}', f'--prompt={PROMPTS[0]["prompt"]}', '--max_tokens=9',
            '--num_samples=2', '--seed=3']
  for flag in ('--stream', '--nostream'):
    out = tmp_path / f'{flag}.jsonl'
    main(*common, flag, f'--out={out}')
    alone = [json.loads(line) for line in out.read_text().splitlines()]
    for one, other in zip(alone, records, strict=True):
      assert one | {'log_prob': 0} == other | {'log_prob': 0}
      assert one['log_prob'] == pytest.approx(other['log_prob'], abs=1e-4)
    output = capsys.readouterr()
    assert output.out == f'{records[0]["response"]}\n\n{records[1]["response"]}\n'
    assert f'[sample 1: {len(records[1]["tokens"])} tokens, ' in output.err


def test_text_is_printed_while_it_is_decoded(capsys):
  tokenizer = generate.tokenizers.CharacterTokenizer('abc')
  printer = generate.Printer(tokenizer)
  for token, shown in ((2, 'a'), (3, 'b'), (1, ''), (2, '')):  # 1 stops; what follows is padding.
    printer.push(np.array([token, 4]))
    assert capsys.readouterr().out == shown
  printer.finish([2, 3, 1])
  assert capsys.readouterr().out == '\n'


def test_a_kill_after_the_output_was_written(folder, whole, tmp_path, monkeypatch):
  class Killed(BaseException):
    pass

  out, partial = tmp_path / 'samples.jsonl', tmp_path / 'samples.jsonl.partial'
  with monkeypatch.context() as patch:
    patch.setattr(generate.jsonl, 'write_jsonl', lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
      of_file(folder, out)

  first, *rest = whole.read_text().splitlines(keepends=True)
  for text in ('other', ''.join(rest), ''.join([*rest, first])):
    out.write_text(text)
    with pytest.raises(ValueError, match='exists already: remove it or give another name'):
      of_file(folder, out)
    assert out.read_text() == text and partial.exists()
  shutil.copy(whole, out)
  of_file(folder, out)
  assert out.read_bytes() == whole.read_bytes() and not partial.exists()


@pytest.mark.parametrize('part', [0.01, 0.4, 0.95])
def test_a_killed_file_of_samples_is_resumed(folder, whole, tmp_path, part, monkeypatch):
  class Killed(BaseException):
    pass

  out, partial = tmp_path / 'samples.jsonl', tmp_path / 'samples.jsonl.partial'
  with monkeypatch.context() as patch:
    patch.setattr(generate.jsonl, 'write_jsonl', lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
      of_file(folder, out)
  content = partial.read_bytes()
  partial.write_bytes(content[: int(part * len(content))])
  with pytest.raises(ValueError, match='samples of something else .seed is 3 there, 4 here'):
    if part < 0.1:  # Nothing is there yet that could be of something else.
      raise ValueError('samples of something else (seed is 3 there, 4 here')
    of_file(folder, out, '--seed=4')
  assert not out.exists()
  of_file(folder, out)
  assert out.read_bytes() == whole.read_bytes() and not partial.exists()


def test_a_mesh_gives_the_same_samples(folder, whole, tmp_path):
  (tmp_path / 'prompts.jsonl').write_text('\n'.join(map(json.dumps, PROMPTS[:2])))
  there = of_file(folder, tmp_path / 'out.jsonl', '--mesh=1x4x2',
                  f'--prompts={tmp_path / "prompts.jsonl"}')
  here = [json.loads(line) for line in whole.read_text().splitlines()]
  assert [r['tokens'] for r in there] == [r['tokens'] for r in here[:4]]


def prompts_of(directory, *arguments, rows=None, tmp_path=None):
  """The prompts as `main` reads them: [(text, ids)]."""
  values = flags.FlagValues()
  generate.define_flags(values)
  arguments = [f'--policy={directory}', *arguments]
  if rows is not None:
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    arguments += [f'--prompts={tmp_path / "rows.jsonl"}', '--out=out.jsonl']
  values(['generate', *map(str, arguments)])
  generate.check_flags(values)
  tokenizer = generate.tokenizers.load_tokenizer(directory)
  return tokenizer, [(p.text, p.ids) for p in generate.read_prompts(values, tokenizer, directory)]


def test_start_ids_precede_plain_prompts_once(folder):
  for text in ('hi', f'{tiny.START}hi'):
    tokenizer, [(_, ids)] = prompts_of(folder / 'bytes', f'--prompt={text}')
    assert ids == [*tokenizer.start_ids, *tokenizer.encode('hi')] and tokenizer.start_ids
  # An empty prompt is a start token alone.
  tokenizer, [(_, ids)] = prompts_of(folder / 'bytes', '--prompt=')
  assert ids == list(tokenizer.start_ids)


def test_chat_templates(folder, tmp_path):
  chat = folder / 'chat'
  rows = [{'prompt': 'it'}, {'messages': [
      {'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'e'},
      {'role': 'user', 'content': 'i'}]}, {'messages': [{'role': 'system', 'content': '1'}]}]
  tokenizer, prompts = prompts_of(chat, '--system=nat', rows=rows, tmp_path=tmp_path)
  start, end = tiny.START, tiny.STOP
  assert [text for text, _ in prompts] == [
      f'{start}[system]nat{end}[user]it{end}[assistant]',
      f'{start}[system]nat{end}[user]a{end}[assistant]e{end}[user]i{end}[assistant]',
      f'{start}[system]1{end}[assistant]']
  assert [ids for _, ids in prompts] == [tokenizer.encode(text) for text, _ in prompts]

  _, [(text, _)] = prompts_of(chat, '--prompt=it', '--chat_template=none')
  assert text == 'it'
  own = tmp_path / 'own.jinja'
  own.write_text('{{ messages[0].content }}{{ eos_token }}')
  _, [(text, _)] = prompts_of(chat, '--prompt=it', f'--chat_template={own}')
  assert text == f'it{end}'

  with pytest.raises(ValueError, match="line 2: 'messages' need a chat template"):
    prompts_of(folder / 'bytes', rows=rows, tmp_path=tmp_path)
  # One that is there and damaged is not passed over.
  shutil.copytree(chat, tmp_path / 'damaged')
  (tmp_path / 'damaged' / 'chat_template.jinja').write_bytes(b'\xff')
  with pytest.raises(ValueError, match=r'chat_template.jinja is not UTF-8'):
    prompts_of(tmp_path / 'damaged', '--prompt=it')


def test_a_damaged_tokenizer_is_ignored_if_another_is_named(folder, tmp_path):
  directory = tmp_path / 'policy'
  shutil.copytree(folder / 'bytes', directory)
  (directory / 'tokenizer.json').write_text('{')
  arguments = (f'--policy={directory}', '--prompt=x', f'--out={tmp_path / "out"}', '--nostream',
               '--max_tokens=9', '--num_samples=2')
  with pytest.raises(ValueError, match='is not a complete tokenizer.json'):
    main(*arguments)
  main(*arguments, f'--tokenizer={folder / "bytes"}')
  assert (tmp_path / 'out').exists()


def test_samples_stop_at_the_stop_ids_of_the_checkpoint(folder, tmp_path):
  directory = tmp_path / 'policy'
  shutil.copytree(folder / 'bytes', directory)
  (directory / 'generation_config.json').write_text(
      json.dumps({'eos_token_id': list(range(2, 200))}))
  main(f'--policy={directory}', '--prompt=x', f'--out={tmp_path / "out"}', '--nostream')
  record = json.loads((tmp_path / 'out').read_text())
  assert record['stop_reason'] == 'stop' and 2 <= record['tokens'][-1] < 200


def test_stop_strings_end_samples(folder, whole, tmp_path, capsys):
  """The samples are those without stop strings, cut where the first one begins."""
  expected = [json.loads(line) for line in whole.read_text().splitlines()]
  tokenizer = loaded(folder / 'bytes').tokenizer
  text = next(r['response'] for r in expected if r['response'][2:5].isascii())
  stops = [text[2:4], text[4]]
  assert sum(any(stop in r['response'] for stop in stops) for r in expected) >= 1

  out = tmp_path / 'out.jsonl'
  records = of_file(folder, out, f'--stop={stops[0]}', f'--stop={stops[1]}')
  for record, before in zip(records, expected, strict=True):
    cut = min((before['response'].find(stop) for stop in stops if stop in before['response']),
              default=None)
    assert record['response'] == before['response'][:cut]
    assert before['tokens'][: len(record['tokens'])] == record['tokens']
    if cut is not None:
      assert record['stop_reason'] == 'stop'
      assert not any(stop in tokenizer.decode(record['tokens'][:-1]) for stop in stops)
      assert any(stop in tokenizer.decode(record['tokens']) for stop in stops)

  # On the terminal, while it is decoded.
  capsys.readouterr()
  arguments = (f'--policy={folder / "bytes"}', '--prompt=x', '--temperature=0', '--max_tokens=9')
  main(*arguments)
  text = capsys.readouterr().out.removesuffix('\n')
  main(*arguments, f'--stop={text[3:5]}', '--stop=absent')
  assert capsys.readouterr().out == text[: text.find(text[3:5])] + '\n'


def test_the_character_tokenizer_of_a_policy(tmp_path, capsys):
  tiny.write_ours(tmp_path / 'trained', arithmetic.ALPHABET, max_length=16, num_layers=1)
  main(f'--policy={tmp_path / "trained"}', '--prompt=012+345=', '--temperature=0', '--nostream')
  output = capsys.readouterr()
  assert set(output.out) <= set(arithmetic.ALPHABET + '\n')
  # Eight of the sixteen slots are left.
  assert '[sample 0: 8 tokens, length' in output.err or ', stop' in output.err
  tiny.write_ours(tmp_path / 'other', 'abc')
  with pytest.raises(ValueError, match=f'{tmp_path / "other"} has no tokenizer: give --tok'):
    main(f'--policy={tmp_path / "other"}', '--prompt=a')
  tiny.write_tokenizer(tmp_path / 'tokenizer', characters='abc')
  with pytest.raises(ValueError, match='was trained with another tokenizer .* than that in'):
    main(f'--policy={tmp_path / "other"}', '--prompt=a', f'--tokenizer={tmp_path / "tokenizer"}')


def test_a_reduced_vocabulary_is_restored_from_the_full_tokenizer(tmp_path):
  config = tiny.write_reduced(tmp_path / 'params', tmp_path / 'base', num_layers=1)
  arguments = (f'--policy={tmp_path / "params"}', '--prompt=the an', f'--out={tmp_path / "out"}',
               '--nostream', '--max_tokens=9')
  with pytest.raises(ValueError, match='has no tokenizer: give --tokenizer=DIR of the full'):
    main(*arguments)
  main(*arguments, f'--tokenizer={tmp_path / "base"}')
  record = json.loads((tmp_path / 'out').read_text())
  assert max(record['tokens']) < config.vocab_size
  tiny.write_tokenizer(tmp_path / 'other')
  (tmp_path / 'out').unlink()
  with pytest.raises(ValueError, match='was trained with another tokenizer .* than that in'):
    main(*arguments, f'--tokenizer={tmp_path / "other"}')


@pytest.mark.parametrize(('arguments', 'line'), [
    (['--prompt=x'], '--policy=DIR is required'),
    (['--policy=nowhere', '--prompt=x'], "--policy: not a directory: 'nowhere'"),
    (['--policy={bytes}'], 'give either --prompt=TEXT or --prompts=FILE'),
    (['--policy={bytes}', '--prompt=x', '--prompts=f'], 'give either'),
    (['--policy={bytes}', '--prompts=f'], '--prompts needs --out'),
    (['--policy={bytes}', '--prompts=f', '--out=o', '--stream'], '--stream is for a single'),
    (['--policy={bytes}', '--prompts=absent', '--out=o'], 'cannot read absent'),
    (['--policy={bytes}', '--prompt=x', '--out={prompts}'], 'exists already: remove it'),
    (['--policy={bytes}', '--prompt=x', '--out=absent/o'], 'in an existing directory'),
    (['--policy={bytes}', '--prompt=x', '--chat_template=none', '--system=s'], "got 's' and none"),
    (['--policy={bytes}', '--prompt=x', '--stop=a', '--stop='], "--stop must be a text, got ''"),
    (['--policy={bytes}', '--prompt=x', '--system=s'], 'no chat template in'),
    (['--policy={bytes}', '--prompt=x', '--mesh=2x2'], "such as 1x8x1, got '2x2'"),
    (['--policy={bytes}', '--prompt=x', '--mesh=1x2x2'],
     '--mesh (data x fsdp x tensor) must use all 8 devices, got 1x2x2'),
    (['--policy={bytes}', '--prompt=x', '--mesh=0x2x4'], '--mesh (data x fsdp x tensor) must use'),
    (['--policy={bytes}', '--prompt=x', '--temperature=0', '--top_k=5'],
     'it needs --num_samples=1, --top_k=0 and --top_p=1, got 1, 5 and 1.0'),
    (['--policy={bytes}', '--prompt=x', '--temperature=0', '--top_p=.9'], 'got 1, 0 and 0.9'),
    (['--policy={bytes}', '--prompt=x', '--temperature=0', '--num_samples=2'], 'got 2, 0 and 1.0'),
    (['--policy={bytes}', '--prompt=x', '--top_p=0'], 'top_p must be in (0, 1], got 0.0'),
    (['--policy={bytes}', '--prompt=x', '--tokenizer=absent'], 'absent'),
    (['--policy={chat}', '--prompt=x', '--tokenizer={bytes}'], 'has 258 ids and the embedding in'),
    (['--policy={bytes}', '--prompt=' + 'x' * 130],
     'at most 127 tokens, got 131 (prompt 0): prompt and sample (--max_tokens=0) must fit '
     'into the 128 slots of the model'),
    (['--policy={bytes}', '--prompt=x', '--max_tokens=127'], 'at most 1 tokens, got 2'),
])
def test_bad_input_is_one_line(folder, tmp_path, monkeypatch, arguments, line):
  monkeypatch.chdir(tmp_path)
  names = {'bytes': folder / 'bytes', 'chat': folder / 'chat', 'prompts': folder / 'prompts.jsonl'}
  with pytest.raises(ValueError) as error:
    main(*(argument.format(**names) for argument in arguments))
  assert line in str(error.value) and '\n' not in str(error.value)
  assert not os.listdir(tmp_path)


def test_rows_without_a_prompt_are_reported_with_their_line(folder, tmp_path):
  for rows, line in (
      ([{'prompt': 'a'}, {'text': 'b'}], "line 2: needs either a text 'prompt' or a list"),
      ([{'prompt': 'a', 'messages': []}], 'line 1: needs either'),
      ([{'prompt': 'a'}, {'messages': []}], r"rows.jsonl, line 2: 'messages' must not be empty"),
      ([{'prompt': 'a', 'label': False}, {'prompt': 'b', 'system': 'S'}],
       "line 2: the column 'system' would be lost, got 'S'"),
      ([{'prompt': 'a', 'images': ['b.png']}], "line 1: 'images' are not supported"),
  ):
    with pytest.raises(ValueError, match=line):
      prompts_of(folder / 'bytes', rows=rows, tmp_path=tmp_path)


def test_the_command(folder):
  command = [sys.executable, '-m', 'experiments.generate', f'--policy={folder / "chat"}']
  done = subprocess.run(
      [*command, '--prompt=it', '--max_tokens=5'], cwd=tiny.REPOSITORY, capture_output=True,
      timeout=120, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith(b'\n') and b'[sample 0: ' in done.stderr


def test_the_dtype_is_that_of_parameters_and_activations(folder, tmp_path):
  dtypes = lambda generator: {leaf.dtype.name for leaf in jax.tree.leaves(generator.params)}
  assert dtypes(loaded(folder / 'bytes', '--dtype=bfloat16')) == {'bfloat16'}
  # A folder of this project's keeps its own.
  tiny.write_ours(tmp_path / 'ours', arithmetic.ALPHABET)
  generator = loaded(tmp_path / 'ours', '--dtype=bfloat16')
  assert dtypes(generator) == {'float32'}
  hidden = jax.eval_shape(
      lambda params: generator.model.apply(
          params, np.zeros((1, 4), int), positions=np.arange(4)[None],
          valid=np.ones((1, 4), bool)), generator.params).hidden
  assert hidden.dtype == 'bfloat16'


def test_tokenizer_and_template_of_a_converted_policy(folder, tmp_path):
  values = flags.FlagValues()
  convert.define_flags(values)
  values(['convert', f'--from={folder / "chat"}', f'--to={tmp_path / "ours"}', '--dtype=bfloat16'])
  convert.main(values)
  generator = loaded(tmp_path / 'ours', '--prompt=it')
  assert generator.tokenizer_dir == str(folder / 'chat')
  prompts = generate.read_prompts(generator.values, generator.tokenizer, generator.tokenizer_dir)
  assert prompts[0].text == f'{tiny.START}[user]it{tiny.STOP}[assistant]'
  assert {leaf.dtype.name for leaf in jax.tree.leaves(generator.params)} == {'bfloat16'}
