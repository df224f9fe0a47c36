"""Damages: each changes a file, says when it does not apply, and follows from the seed."""

import io
import json
import random

import numpy as np
import pytest

from experiments.faults import damage

LINES = b'{"id": 1, "rewards": [0.5, 1]}\n{"id": 2, "rewards": [0.25, 0]}\n{"id": 3, "x": 4}\n'
DOCUMENT = json.dumps({'score': 0.5, 'curve': [{'kl': 1.5}]}, indent=2).encode() + b'\n'


def _npz():
  buffer = io.BytesIO()
  np.savez_compressed(buffer, labels=np.arange(6), scores=np.linspace(0, 1, 4))
  return buffer.getvalue()


def _arrays(content):
  with np.load(io.BytesIO(content), allow_pickle=False) as file:
    return dict(file)


@pytest.mark.parametrize('name, content', [
    ('a.jsonl', LINES), ('a.json', DOCUMENT), ('a.npz', _npz()), ('manifest.ocdbt', b'abcd' * 40)])
def test_every_damage_changes_the_file_and_follows_from_the_seed(name, content):
  for kind in damage.applicable(name):
    changed = kind(content, random.Random(3))
    assert changed is not None and kind(content, random.Random(3)) == changed, kind
    assert any(kind(content, random.Random(seed)) != content for seed in range(5)), kind


def test_a_damage_that_does_not_apply_returns_nothing():
  rng = random.Random(0)
  for kind in (damage.flip_bit, damage.truncate, damage.empty, damage.zeros, damage.double_line):
    assert kind(b'', rng) is None
  assert damage.delete_line(b'{"a": 1}\n', rng) is None
  assert damage.swap_lines(b'a\na\n', rng) is None
  assert damage.change_number(b'{"a": "b"}', rng) is None
  assert damage.change_array(b'no archive', rng) is None


def test_one_bit_is_flipped():
  for seed in range(20):
    flipped = damage.flip_bit(LINES, random.Random(seed))
    bits = [a ^ b for a, b in zip(flipped, LINES, strict=True) if a != b]
    assert len(bits) == 1 and bits[0].bit_count() == 1


def test_changed_documents_remain_documents():
  for seed in range(20):
    for kind in damage.DOCUMENTS:
      changed = kind(LINES, random.Random(seed))
      lines = [json.loads(line) for line in changed.splitlines()]
      assert len(lines) == 3 and changed != LINES
    assert isinstance(json.loads(damage.change_number(DOCUMENT, random.Random(seed))), dict)


def test_changed_arrays_are_read_but_pickles_are_refused():
  before = _arrays(_npz())
  for kind in (damage.change_array, damage.permute_array, damage.shorten_array):
    after = _arrays(kind(_npz(), random.Random(1)))
    assert [name for name in before if not np.array_equal(before[name], after[name])]
  assert len(_arrays(damage.remove_array(_npz(), random.Random(0)))) == 1
  assert np.isnan(_arrays(damage.nan_in_array(_npz(), random.Random(0)))['scores']).sum() == 1
  with pytest.raises(ValueError, match='allow_pickle'):
    _arrays(damage.pickled_object(_npz(), random.Random(0)))
