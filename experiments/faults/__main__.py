"""A campaign of faults: does every run end with the right numbers, or with one line?

Tiny runs of the programs are killed, interrupted, given damaged files and full disks, and started
with wrong commands. Each case ends in one of: `equal` (the numbers of an undisturbed run), `equal,
with a notice` (something was found damaged and computed again), `one line` (status 2 and one error
line), or a failure: `unclear` (the line does not name the damaged file), `wrong` (other numbers, or
a run that was only killed is refused), a `traceback`, `hung` (over the time limit) or `accepted` (a
wrong command that ran). Cases are determined by the seed; running the same command again continues
with the missing ones.
"""

import dataclasses
import functools
from concurrent import futures

from experiments.faults import cases, inputs, invocations, report
from jaxrl_llm.runs import launch
from jaxrl_llm.runs import records as records_lib
from jaxrl_llm.training import loop, metrics


def main(run: launch.Run) -> None:
  """Runs the missing cases, and writes the table and results.json."""
  config = run.config
  campaign = cases.Campaign(config, run.workdir, run.commit)
  inputs.write(campaign.inputs)
  invocations.write_bad_configs(campaign.inputs / 'bad')

  planned = cases.plan(config, campaign.inputs)
  needed = sorted({case.target for case in planned if case.kind != 'invocation'})
  path, provenance = run.workdir / 'cases.jsonl', {
      **dataclasses.asdict(config), 'commit': run.commit}
  with records_lib.open_records(path, provenance, batch=1, total=len(planned)) as file:
    records = file.records
    done = {record['case'] for record in records}
    missing = [case for case in planned if case.index not in done]

    with loop.Stopper() as stopper, futures.ThreadPoolExecutor(config.workers) as pool:
      with loop.progress(len(needed), 'undisturbed runs') as bar:
        prepare = functools.partial(_prepare, campaign, stopper)
        for _ in pool.map(prepare, needed):
          bar.update(1)
        stopper.check('stopped; the undisturbed runs so far are kept')

      with loop.progress(len(planned), 'cases', len(done)) as bar:
        play = functools.partial(_play, campaign, stopper)
        for record in pool.map(play, missing):
          if record is None:
            continue
          file.append(record)
          bar.update(1, failures=sum(r['outcome'] in cases.FAILURES for r in records))
      stopper.check('stopped; the cases so far are kept')

  records.sort(key=lambda record: record['case'])
  table = report.table(records)
  metrics.write_text_atomic(run.table_path, table + '\n')
  launch.write_results(run, report.numbers(records))
  print(f'\n{table}\n\ncases: {run.workdir / "cases.jsonl"}')


def _prepare(campaign: cases.Campaign, stopper: loop.Stopper, name: str) -> None:
  """Makes the undisturbed runs of a target, unless a stop was requested."""
  if not stopper.requested:
    campaign.prepare(name)


def _play(campaign: cases.Campaign, stopper: loop.Stopper, case: cases.Case):
  """Runs a case, or returns None once a stop was requested."""
  record = None if stopper.requested else campaign.run(case)
  return None if stopper.requested else record


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/faults.py')
