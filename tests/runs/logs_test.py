"""Logs of a complete run that were changed since its end are named."""

import re

import pytest

from jaxrl_llm.runs import logs


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / 'seed0').mkdir()
  for name in ('metrics.jsonl', 'seed0/samples.jsonl'):
    (tmp_path / name).write_text('{"step": 0}\n{"step": 1}\n')
  logs.write(tmp_path)
  return tmp_path


def test_unchanged_logs_pass_and_so_do_runs_of_earlier_versions(workdir):
  logs.check(workdir)
  (workdir / 'logs.json').unlink()
  (workdir / 'metrics.jsonl').write_text('')
  logs.check(workdir)


@pytest.mark.parametrize('name', ['metrics.jsonl', 'seed0/samples.jsonl'])
@pytest.mark.parametrize('change', [
    lambda path: path.write_text('{"step": 0}\n{"step": 2}\n'), lambda path: path.unlink()])
def test_a_changed_log_is_named(workdir, name, change):
  change(workdir / name)
  message = f'{workdir / name} does not have the digest in {workdir / "logs.json"}'
  with pytest.raises(ValueError, match=re.escape(message)):
    logs.check(workdir)


@pytest.mark.parametrize('text', ['', '[]', '{}', 'null', '[' * 100_000, '{"metrics.jsonl": "0"}'])
def test_damaged_digests_are_named(workdir, text):
  (workdir / 'logs.json').write_text(text)
  with pytest.raises(ValueError, match=re.escape(str(workdir / 'logs.json'))) as error:
    logs.check(workdir)
  assert '\n' not in str(error.value)
