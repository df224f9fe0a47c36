"""Files with finished results: what is written is read, and every kind of damage is one error."""

import dataclasses
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from jaxrl_llm.runs import arms, artefacts

IDENTITY = {'experiment': 'study', 'seed': 0, 'config': {'eta': 0.5, 'sizes': (1, 2)}}
CONTENTS = {
    'json': {'curve': [{'score': 0.1 + 0.2, 'steps': 3}], 'name': 'Größe', 'none': None},
    'npz': {
        'scores': np.arange(6, dtype=np.float32).reshape(2, 3), 'count': np.int32(7),
        'diverged': np.array([np.nan, np.inf]), 'names': np.array(['a', 'bc']),
        'empty': np.zeros((0, 2)), 'by_column': np.asfortranarray(np.eye(3)[:2])},
}
FORMATS = tuple(CONTENTS)


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
  path = tmp_path / 'arms' / f'a.{request.param}'
  artefacts.write(path, CONTENTS[request.param], IDENTITY, commit='abc')
  return path


def _assert_equal(actual, content):
  if isinstance(actual, dict) and all(isinstance(x, np.ndarray) for x in actual.values()):
    assert actual.keys() == content.keys()
    for name, value in content.items():
      np.testing.assert_array_equal(actual[name], value)
      assert actual[name].dtype == np.asarray(value).dtype
  else:
    assert actual == content


def test_what_is_written_is_read(path):
  _assert_equal(artefacts.read(path, IDENTITY), CONTENTS[path.suffix[1:]])
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_json_file_is_plain_and_keeps_the_order_of_names(tmp_path):
  artefacts.write(tmp_path / 'a.json', {'b': np.float32(1), 'a': float('nan')}, IDENTITY,
                  commit='abc')
  document = json.loads((tmp_path / 'a.json').read_text())
  assert list(document['content']) == ['b', 'a'] and document['content']['a'] == 'nan'
  assert document['commit'] == 'abc' and document['identity']['config']['sizes'] == [1, 2]


def test_another_commit_may_read(path):
  artefacts.write(path, CONTENTS[path.suffix[1:]], IDENTITY, commit='other')
  _assert_equal(artefacts.read(path, IDENTITY), CONTENTS[path.suffix[1:]])


# --- Damage. Each function changes a file in place.


def _truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _flip(path):
  """Changes content: a digit in JSON, a byte of the first array in npz (a CRC error)."""
  data = bytearray(path.read_bytes())
  at = data.index(b'"steps": 3') + 9 if path.suffix == '.json' else 100
  data[at] ^= 1
  path.write_bytes(data)


def _nest(path):
  text = '[' * 100_000 + ']' * 100_000
  _replace(path, text, np.array(text))


def _pickle(path):
  data = pickle.dumps({'curve': []})
  if path.suffix == '.npz':
    buffer = io.BytesIO()
    np.savez(buffer, scores=np.array([{}], dtype=object))
    data = buffer.getvalue()
  path.write_bytes(data)


def _replace(path, text, header):
  """Replaces the JSON text, or the header of an npz."""
  if path.suffix == '.json':
    path.write_text(text)
    return
  arrays = dict(np.load(path))
  np.savez(path, **arrays | {artefacts._HEADER: header})


def _edit(path, change):
  """Applies `change` to the document of a JSON file, or to the arrays and header of an npz."""
  if path.suffix == '.json':
    document = json.loads(path.read_text())
    change(document, document['content']['curve'][0])
    path.write_text(json.dumps(document))
    return
  arrays = dict(np.load(path))
  header = json.loads(arrays[artefacts._HEADER].item())
  change(header, arrays)
  np.savez(path, **arrays | {artefacts._HEADER: np.array(json.dumps(header))})


def _nan(path):
  def change(document, values):
    if path.suffix == '.json':
      values['score'] = float('nan')
    else:
      values['scores'][0, 0] = np.nan
  _edit(path, change)


def _remove_value(path):
  _edit(path, lambda document, values: values.pop(sorted(values)[-1]))


def _other_identity(path, **changes):
  artefacts.write(path, CONTENTS[path.suffix[1:]], IDENTITY | changes)


def _compress_unknown(path):
  if path.suffix == '.json':
    path.write_bytes(b'\xff\xfe' + path.read_bytes())
    return
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('scores.npy', b'not an array')


def _lone_array(path):
  with open(path, 'wb') as file:
    np.save(file, np.zeros(3))


DAMAGE = {
    'truncated': (_truncate, 'damaged'),
    'empty': (lambda path: path.write_bytes(b''), 'damaged'),
    'a flipped bit': (_flip, 'damaged'),
    'neither JSON nor an archive': (lambda path: path.write_text('<html>'), 'damaged'),
    'no object': (lambda path: _replace(path, '[]', np.array('[]')), 'damaged .*not a result'),
    'another format': (_lone_array, 'damaged'),
    'not text, or no array': (_compress_unknown, 'damaged'),
    'nested too deeply': (_nest, 'damaged .RecursionError'),
    'pickled': (_pickle, 'damaged'),
    'a value is missing': (_remove_value, 'does not match its digest'),
    'no commit': (lambda path: _edit(path, lambda d, _: d.pop('commit')), 'does not match'),
    'NaN': (_nan, 'damaged'),
    'another seed': (lambda path: _other_identity(path, seed=1), 'seed is 1 there, 0 here'),
    'another config': (
        lambda path: _other_identity(path, config={'eta': 0.5, 'sizes': (1, 3)}),
        r'config.sizes is \[1, 3\] there, \[1, 2\] here'),
    'edited identity': (
        lambda path: _edit(path, lambda d, _: d['identity'].update(seed=0.0)), 'does not match'),
    'a field more': (
        lambda path: _other_identity(path, kind='x'), r"kind is 'x' there, '\(absent\)'"),
    'no digest': (lambda path: _edit(path, lambda d, _: d.pop('sha256')), 'no digest.*--workdir'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damage_is_one_error_that_says_what_to_do(path, kind):
  damage, message = DAMAGE[kind]
  damage(path)
  with pytest.raises(artefacts.Damaged, match=message) as caught:
    artefacts.read(path, IDENTITY)
  text = str(caught.value)
  assert str(path) in text and 'delete it' in text and 'run the command again' in text
  assert '\n' not in text and len(text) < 500
  assert caught.value.is_older == (kind == 'no digest')


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_file_is_set_aside_and_computed_again(path, kind, capsys):
  DAMAGE[kind][0](path)
  content = CONTENTS[path.suffix[1:]]
  if kind == 'no digest':
    with pytest.raises(artefacts.Damaged, match='no digest'):
      arms.finished(path, IDENTITY, lambda: pytest.fail('computed'))
    assert path.exists()
    return

  damaged = path.read_bytes()
  _assert_equal(arms.finished(path, IDENTITY, lambda: content), content)
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(f'{path}: ') and line.endswith('renamed to '
                                                    f'{path.name}.damaged and is computed again')
  assert path.with_name(f'{path.name}.damaged').read_bytes() == damaged
  _assert_equal(arms.finished(path, IDENTITY, lambda: pytest.fail('computed')), content)


def test_objects_and_other_suffixes_are_refused(tmp_path):
  with pytest.raises(ValueError, match='arrays must hold no Python objects, got object .x.'):
    artefacts.write(tmp_path / 'a.npz', {'x': np.array([{}])}, IDENTITY)
  with pytest.raises(ValueError, match='suffix must be .json or .npz'):
    artefacts.write(tmp_path / 'a.txt', {}, IDENTITY)
  assert not list(tmp_path.iterdir())


def test_identities_leave_out_where_data_is():
  @dataclasses.dataclass
  class Part:
    data_dir: str
    width: int = 3

  @dataclasses.dataclass
  class Config:
    part: Part
    note: str = 'note'

  assert arms.identity_of('study', Config(Part('/data')), arm='a') == {
      'experiment': 'study', 'config': {'part': {'width': 3}}, 'arm': 'a'}


def test_earlier_damaged_files_and_directories_are_kept(tmp_path, capsys):
  for number in range(3):
    (tmp_path / 'arm').write_text(str(number)) if number < 2 else (tmp_path / 'arm').mkdir()
    arms.set_aside(tmp_path / 'arm', 'it is damaged')
  assert sorted(path.name for path in tmp_path.iterdir()) == [
      'arm.damaged', 'arm.damaged_', 'arm.damaged__']
  assert (tmp_path / 'arm.damaged').read_text() == '0'
  assert 'it was renamed to arm.damaged_ and is computed again' in capsys.readouterr().out


def test_what_a_run_began_with_is_compared(tmp_path):
  path = tmp_path / 'task.json'

  def pin(content, identity=IDENTITY):
    artefacts.pin(path, content, identity, description='the data', commit='')

  for _ in range(2):
    pin('a')
  with pytest.raises(ValueError, match=r'the data changed since the run began \(.*task.json\)'):
    pin('b')
  with pytest.raises(ValueError, match='it was made for something else: .*; give another'):
    pin('a', {'another': 'run'})
  path.write_text(path.read_text().replace('"a"', '"b"'))
  with pytest.raises(ValueError, match='does not match its digest.*; give another --workdir'):
    pin('b')
