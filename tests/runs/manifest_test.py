"""Files of a complete run that were changed since its end, or are another run's, are named."""

import re

import pytest

from jaxrl_llm.runs import manifest

RESULTS = 'digest of results.json'


@pytest.fixture
def workdir(tmp_path):
  for name in ('seed0', 'params', 'checkpoints/3'):
    (tmp_path / name).mkdir(parents=True)
  for name in ('metrics.jsonl', 'seed0/samples.jsonl', 'table.md', 'params/checksums.json',
               'checkpoints/3/checksums.json'):
    (tmp_path / name).write_text('{"step": 0}\n{"step": 1}\n')
  manifest.write(tmp_path, RESULTS)
  return tmp_path


def test_unchanged_files_pass(workdir):
  manifest.check(workdir, RESULTS)
  (workdir / 'checkpoints/3/checksums.json').unlink()  # Nothing reads checkpoints any more.
  manifest.check(workdir, RESULTS)


@pytest.mark.parametrize('name', [
    'metrics.jsonl', 'seed0/samples.jsonl', 'table.md', 'params/checksums.json'])
@pytest.mark.parametrize('change', [
    lambda path: path.write_text('{"step": 0}\n{"step": 2}\n'), lambda path: path.unlink()])
def test_a_changed_file_is_named(workdir, name, change):
  change(workdir / name)
  message = f'{workdir / name} does not have the digest in {workdir / "manifest.json"}'
  with pytest.raises(ValueError, match=re.escape(message)):
    manifest.check(workdir, RESULTS)


@pytest.mark.parametrize('text', ['', '[]', '{}', 'null', '[' * 100_000, '{"metrics.jsonl": "0"}'])
def test_damaged_digests_are_named(workdir, text):
  (workdir / 'manifest.json').write_text(text)
  with pytest.raises(ValueError, match=re.escape(str(workdir / 'manifest.json'))) as error:
    manifest.check(workdir, RESULTS)
  assert '\n' not in str(error.value)


def test_digests_that_are_missing_or_of_another_run_are_named(workdir):
  with pytest.raises(ValueError, match='manifest.json is of another run'):
    manifest.check(workdir, 'another digest')
  (workdir / 'manifest.json').unlink()
  with pytest.raises(ValueError, match='manifest.json is missing: .*delete .*results.json and run'):
    manifest.check(workdir, RESULTS)
