"""Makes the golden logits of tests/golden/models/ with transformers.

  python -m tests.golden.make_model_goldens

It needs the extra `parity`. A family's JSON file contains each case's config.json, the names and
shapes of its tensors, its tokens and its controls; the .npz file contains the logits. The weights
are drawn by draws.py. The script fails unless logits are spread (otherwise errors would be
hidden), both sides of padding and cached decoding agree, and every control differs.
"""

import dataclasses
import json
import pathlib
import tempfile

import numpy as np

from tests.golden import draws, model_cases, torch_models

FOLDER = pathlib.Path(__file__).parent / 'models'
AGREEMENT = 5e-5  # Of two computations of the same float32 logits; half of the tests' tolerance.


def run(directory, case, weights, sequences, *, control=None) -> dict[str, list[np.ndarray]]:
  """Logits of a case, or of one of its controls, at every real token.

  Returns:
    Each row's float32 [tokens, V], or [1] of a classifier, by way of computation: 'right' (side
    of the padding), and for a case itself 'left', 'decoded' (with a cache), and two wrong ones:
    'padding' (which is attended to) and 'positions' (which count the padding).
  """
  fields = {**case.fields, **(control.fields if control else {})}
  edit = control.edit[0] if control and control.edit else None
  if edit in ('zero', 'minus_one'):
    weights = draws.edited(weights, control.edit)
  model = torch_models.load(draws.write_checkpoint(directory, fields, weights))
  if edit in ('identity', 'unscaled'):
    model = torch_models.edited(model, control.edit)

  def rows(batch, compute=torch_models.logits, **wrong):
    tokens, mask, positions = batch
    values = compute(model, tokens, wrong.get('mask', mask), wrong.get('positions', positions))
    return list(values) if case.is_classifier else [v[m] for v, m in zip(values, mask)]

  padded = lambda left: draws.padded(
      sequences, width=model_cases.WIDTH, left=left, fill=0 if case.is_classifier else None)
  left, right = padded(True), padded(False)
  if control is not None:
    return {'right': rows(right)}

  logits = {'right': rows(right), 'left': rows(left),
            'padding': rows(left, mask=np.ones_like(left[1]))}
  if not case.is_classifier:
    logits['decoded'] = rows(left, torch_models.decoded_logits)
  if case.family == 'gpt2':  # Rotary positions are relative, so that their start has no effect.
    every_slot = np.broadcast_to(np.arange(model_cases.WIDTH), left[1].shape)
    logits['positions'] = rows(left, positions=every_slot)
  return logits


def gap(one, other) -> float:
  """The largest difference at any real token."""
  return max(float(np.max(np.abs(a - b))) for a, b in zip(one, other, strict=True))


def at(rows, indices) -> np.ndarray:
  """The logits to store: at some (row, token) indices, or a classifier's [B, 1]."""
  return np.stack([rows[row][token] for row, token in indices] if rows[0].ndim > 1 else rows)


def collect(case, golden, controls, **more) -> tuple[dict, dict]:
  """Returns a case's record and arrays.

  Args:
    case: the case.
    golden: its rows of logits or hidden states.
    controls: (name, rows, other fields of its record) of each control.
    **more: other fields of the case's record.

  Raises:
    AssertionError: a control does not differ.
  """
  arrays, records = {case.name: at(golden, model_cases.STORED_INDICES)}, []
  for name, rows, control in controls:
    least, differs = control.get('least', 1e-2), gap(rows, golden)
    print(f'  {name}: {differs:.3g}')
    assert differs >= least, (case.name, name, differs)
    arrays[f'{case.name}/{name}'] = at(rows, model_cases.CONTROL_INDICES)
    records.append({'name': name, 'least': least, 'differs': round(differs, 4), **control})
  record = {'name': case.name, 'fields': case.fields, 'norm_centre': case.norm_centre,
            'classifier': case.is_classifier, **more, 'controls': records}
  return record, arrays


def make(case, directory) -> tuple[dict, dict]:
  """Returns the record and the arrays of a decoder."""
  shapes, saved = torch_models.published(case.fields)
  weights = draws.tensors(case.name, shapes, norm_centre=case.norm_centre)
  sequences = draws.rows(case.name, model_cases.LENGTHS, case.fields['vocab_size'])
  logits = run(directory, case, weights, sequences)
  right = logits['right']

  spread = float(np.std(np.concatenate(right)))
  assert np.isfinite(spread) and (spread >= 1 or case.is_classifier), (case.name, spread)
  agreement = max(gap(logits[way], right) for way in ('left', 'decoded') if way in logits)
  assert agreement < AGREEMENT, (case.name, agreement)
  print(f'{case.name}: standard deviation {spread:.2f}, computations agree to {agreement:.1e}')

  controls = [(name, logits[name], {}) for name in ('padding', 'positions') if name in logits]
  for control in case.controls:
    its_shapes, _ = torch_models.published({**case.fields, **control.fields})
    changed = draws.in_shapes(case.name, weights, its_shapes, norm_centre=case.norm_centre)
    rows = run(directory, case, changed, sequences, control=control)['right']
    shape_changes = {'shapes': its_shapes} if its_shapes != shapes else {}
    controls.append((control.name, rows, dataclasses.asdict(control) | shape_changes))
  return collect(case, right, controls, shapes=shapes, sequences=sequences, saved=saved)


def run_encoder(directory, case, weights, sequences, *, control=None) -> dict:
  """Hidden states of an encoder at its real tokens, each row's float32 [tokens, D].

  Returns:
    'hidden', and 'padding': the same with padding attended to, which is wrong.
  """
  fields = {**case.fields, **(control.fields if control else {})}
  if control and control.edit:
    weights = draws.edited(weights, control.edit)
  model = torch_models.load(draws.write_checkpoint(directory, fields, weights))
  tokens, mask, _ = draws.padded(sequences, width=model_cases.WIDTH, left=False)
  rows = lambda attended: [
      v[m] for v, m in zip(torch_models.hidden_states(model, tokens, attended), mask)]
  return {'hidden': rows(mask), 'padding': rows(np.ones_like(mask))}


def make_encoder(case, directory) -> tuple[dict, dict]:
  """Returns the record and the arrays of an encoder: hidden states and both poolings [B, D]."""
  shapes, saved = torch_models.published(case.fields)
  weights = draws.tensors(case.name, shapes)
  sequences = draws.rows(case.name, model_cases.LENGTHS, case.fields['vocab_size'])
  states = run_encoder(directory, case, weights, sequences)
  hidden = states['hidden']
  print(f'{case.name}: standard deviation {np.std(np.concatenate(hidden)):.2f}')

  controls = [('padding', states['padding'], {})]
  for control in case.controls:
    rows = run_encoder(directory, case, weights, sequences, control=control)['hidden']
    controls.append((control.name, rows, dataclasses.asdict(control)))

  record, arrays = collect(
      case, hidden, controls, shapes=shapes, sequences=sequences, saved=saved)
  arrays[f'{case.name}/cls'] = np.stack([row[0] for row in hidden])
  arrays[f'{case.name}/mean'] = np.stack([row.mean(axis=0) for row in hidden])
  return record, arrays


def write(family: str, records: list[dict], arrays: dict) -> None:
  """Writes a family's two files."""
  FOLDER.mkdir(exist_ok=True)
  lines = ',\n'.join(json.dumps(record) for record in records)
  (FOLDER / f'{family}.json').write_text(f'[\n{lines}\n]\n')
  np.savez(FOLDER / f'{family}.npz', **arrays)


def main() -> None:
  """Makes every family's files."""
  families = {}
  with tempfile.TemporaryDirectory() as directory:
    for case in (*model_cases.CASES, *model_cases.ENCODERS):
      function = make_encoder if case in model_cases.ENCODERS else make
      record, arrays = function(case, pathlib.Path(directory))
      records, all_arrays = families.setdefault(case.family, ([], {}))
      records.append(record)
      all_arrays.update(arrays)
  for family, (records, arrays) in families.items():
    write(family, records, arrays)


if __name__ == '__main__':
  main()
