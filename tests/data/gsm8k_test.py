"""GSM8K from raw files and through TFDS without TensorFlow."""

import json
import pathlib
import subprocess
import sys

import pytest

from jaxrl_llm.data import gsm8k


@pytest.fixture
def small_dir(tmp_path):
  folder = tmp_path / 'raw'
  folder.mkdir()
  for split, count in (('train', 5), ('test', 3)):
    rows = [
        {'question': f'{split} question {i}: é\u2028?', 'answer': f'{i}+1 = <<{i}+1={i + 1}>>.\n'
         f'#### {i + 1}'}
        for i in range(count)
    ]
    (folder / f'{split}.jsonl').write_text('\n'.join(json.dumps(row) for row in rows))
  return folder


def test_published_files(data_dir):
  train = gsm8k.load_split(data_dir / 'gsm8k', 'train')
  test = gsm8k.load_split(data_dir / 'gsm8k', 'test')
  assert (len(train), len(test)) == (7473, 1319)
  assert train[0].question.startswith('Natalia sold clips')
  assert gsm8k.final_answer(train[0].answer) == '72'
  for problem in train + test:
    number = gsm8k.final_answer(problem.answer)
    assert number.lstrip('-').replace('.', '', 1).isdigit()
    stripped = gsm8k.strip_annotations(problem.answer)
    assert '<<' not in stripped and '>>' not in stripped
    assert gsm8k.final_answer(stripped) == number
  assert [problem.index for problem in test] == list(range(1319))


@pytest.mark.parametrize(
    'answer, number',
    [
        ('a\n#### 72', '72'),
        ('#### 1,234,567', '1234567'),
        ('x\n#### -3', '-3'),
        ('x #### 4\n#### 5\n', '5'),
        ('#### 0.5', '0.5'),
    ],
)
def test_final_answer_by_hand(answer, number):
  assert gsm8k.final_answer(answer) == number


@pytest.mark.parametrize('answer', ['', '72', '#### ', '#### 1\nmore', '####72', '#### five'])
def test_no_final_answer_is_an_error(answer):
  with pytest.raises(ValueError, match="last line must be '#### ' and a number"):
    gsm8k.final_answer(answer)


def test_strip_annotations_by_hand():
  text = 'He paid 48/2 = $<<48/2=24>>24, then <<1+1=2>>2 < 3 >> 1.\n#### 24'
  assert gsm8k.strip_annotations(text) == 'He paid 48/2 = $24, then 2 < 3 >> 1.\n#### 24'


def test_damaged_files_are_one_clear_line(small_dir):
  path = small_dir / 'train.jsonl'
  whole = path.read_text()
  for content, message in (
      (whole[:-10], 'train.jsonl, line 5: not a complete JSON object'),
      (whole.replace('#### 3', 'so 3'), "train.jsonl, line 3: the answer's last line"),
      (whole.replace('"question"', '"query"', 1), "line 1: the key 'question' is missing"),
      ('{"question": " ", "answer": "#### 1"}', 'line 1: the question is empty'),
  ):
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
      gsm8k.load_split(small_dir, 'train')
    assert '\n' not in str(error.value)

  with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'dev'"):
    gsm8k.load_split(small_dir, 'dev')
  with pytest.raises(ValueError, match='cannot read'):
    gsm8k.load_split(small_dir / 'none', 'test')


_PROGRAM = """
import sys
from jaxrl_llm.data import gsm8k
from jaxrl_llm.data.tfds_builders.gsm8k import gsm8k_dataset_builder as builder
source, cache = sys.argv[1:]
for split in gsm8k.SPLITS:
  for _ in range(2):  # Prepares, then reads what is there.
    assert builder.read(source, split, cache_dir=cache) == gsm8k.load_split(source, split)
assert 'tensorflow' not in sys.modules
"""


def _run_tfds(source, cache):
  return subprocess.run(
      [sys.executable, '-c', _PROGRAM, str(source), str(cache)],
      capture_output=True,
      text=True,
      cwd=pathlib.Path(__file__).resolve().parents[2],
  )


def test_tfds_equals_the_raw_files_without_tensorflow(data_dir, tmp_path):
  result = _run_tfds(data_dir / 'gsm8k', tmp_path / 'cache')
  assert result.returncode == 0, result.stderr
  assert list((tmp_path / 'cache').glob('*/gsm8k/1.0.0/*.array_record*'))


def test_tfds_notices_changed_files(small_dir, tmp_path):
  from jaxrl_llm.data.tfds_builders.gsm8k import gsm8k_dataset_builder as builder

  cache = tmp_path / 'cache'
  first = builder.read(small_dir, 'test', cache_dir=cache)
  assert first == gsm8k.load_split(small_dir, 'test') and len(first) == 3
  path = small_dir / 'test.jsonl'
  path.write_text(path.read_text().replace('question 1', 'query 1'))
  second = builder.read(small_dir, 'test', cache_dir=cache)
  assert second == gsm8k.load_split(small_dir, 'test') != first
  path.write_text(path.read_text()[:-4])
  with pytest.raises(ValueError, match='test.jsonl, line 3'):
    builder.read(small_dir, 'test', cache_dir=cache)
  with pytest.raises(ValueError, match='cannot read'):
    builder.read(tmp_path, 'test', cache_dir=cache)
