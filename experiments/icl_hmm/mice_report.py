"""Report of the study of mice: headline numbers, tables, a figure with its data, a paragraph."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from jaxrl_llm.evaluation import statistics
from jaxrl_llm.runs import figures, launch
from jaxrl_llm.training import metrics

LABELS = {
    'chance': 'chance',
    'bias': 'bias',
    'ngram2': '2-gram (contrast)',
    'ngram3': '3-gram (choice before, contrast)',
    'glm': 'GLM',
    'glm_levels': 'GLM, a weight for each contrast',
    'context_ngram2': '2-gram, in the window alone',
    'context_ngram3': '3-gram, in the window alone',
    'icl_choice': 'ICL: choice',
    'icl_choice_reward': 'ICL: choice, reward',
    'icl_stim_choice': 'ICL: contrast, choice',
    'icl_stim_choice_reward': 'ICL: contrast, choice, reward',
    'icl_shift': 'ICL: shifted (reads the answer)',
    'bayes': 'optimal (knows the mouse)',
}
_SHOWN = ('bias', 'glm', 'glm_hmm', 'context_ngram3', 'icl_stim_choice', 'icl_stim_choice_reward',
          'icl_shift', 'bayes')
_CURVES = ('icl_choice', 'icl_stim_choice', 'icl_stim_choice_reward', 'icl_shift')
_COLOURS = dict(zip(
    (*_SHOWN, 'icl_choice'),
    ('0.7', '#c98a1b', '#2e8b57', '#8d6a9f', '#1b6ca8', '#6fb1dc', '#d1495b', '0.2', '#e377c2')))
SIMULATED = 'simulated_'  # Prefix of the names of simulated mice.


def label(method: str) -> str:
  """Readable name of a method."""
  if method.startswith('glm_hmm'):
    return f'GLM-HMM, {method.removeprefix("glm_hmm")} states'
  if method.startswith('checkpoint_'):
    return LABELS['icl_' + method.removeprefix('checkpoint_')].replace('ICL', 'checkpoint')
  return LABELS[method]


def hits(chances: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """1 if the likelier choice was made, 1/2 if both are equally likely, NaN if either is missing."""
  right = np.where(chances == .5, .5, (chances > .5) == (choices > 0))
  return np.where(np.isnan(chances) | (choices < 0), np.nan, right)


def log_probs(chances: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """Log-probability of the choice that was made; NaN as in `hits`."""
  made = np.where(choices > 0, chances, 1 - chances)
  return np.where(choices < 0, np.nan, np.log(np.maximum(made, 1e-12)))


def _methods(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (method, P(choice 1)) in the order of the table."""
  chances = {name.removeprefix('chance/'): values for name, values in arrays.items()
             if name.startswith('chance/')}
  order = [*LABELS][:6] + [name for name in chances if name.startswith('glm_hmm')]
  order += [name for name in LABELS if name not in order] + [*chances]
  return ((name, chances[name]) for name in dict.fromkeys(order) if name in chances)


def _real(names: Iterable[str]) -> list[str]:
  """Names of real animals."""
  return [name for name in names if not name.startswith(SIMULATED)]


def _summary(name: str, accuracy: np.ndarray, probability: np.ndarray) -> dict[str, float]:
  """Means and standard errors over folds or animals."""
  numbers = {}
  for part, values in (('accuracy', accuracy), ('probability', probability)):
    mean, error = statistics.mean_and_standard_error(values)
    numbers |= {f'{name}/{part}': float(mean), f'{name}/{part}_se': float(error)}
  return numbers


def animal_numbers(predictions: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
  """mice/<animal>/<method>/..., over folds, and mean/<method>/..., over real animals.

  Without real animals the mean is over the simulated ones. A probability is exp of the mean
  log-prob of the choices that were made.
  """
  numbers = {}
  for name, arrays in predictions.items():
    choices, fold = arrays['choices'], arrays['fold']
    for method, chances in _methods(arrays):
      parts = [fold == own for own in np.unique(fold)]
      accuracy = [np.nanmean(hits(chances, choices)[part]) for part in parts]
      likely = [np.exp(np.nanmean(log_probs(chances, choices)[part])) for part in parts]
      numbers |= _summary(f'mice/{name}/{method}', np.array(accuracy), np.array(likely))

  averaged = _real(predictions) or list(predictions)
  for method, _ in _methods(predictions[averaged[0]]):
    numbers |= _summary(f'mean/{method}', *(np.array([
        numbers[f'mice/{name}/{method}/{part}'] for name in averaged])
        for part in ('accuracy', 'probability')))
  return numbers


def cohort_numbers(cohort: Mapping[str, np.ndarray]) -> dict[str, float]:
  """cohort/<method>/... in the second half of the windows, over simulated mice.

  `minus_bayes` is the accuracy minus that of the best prediction, paired by mouse.
  """
  choices = cohort['choices']
  # The last trial has no label in the shifted layout.
  half = slice(choices.shape[1] // 2, choices.shape[1] - 1)
  numbers, reference = {}, None
  for method, chances in sorted(_methods(cohort), key=lambda item: item[0] != 'bayes'):
    accuracy = hits(chances, choices)[:, half].mean(axis=1)
    likely = log_probs(chances, choices)[:, half].mean(axis=1)
    reference = accuracy if reference is None else reference
    gap, error = statistics.mean_and_standard_error(accuracy - reference)
    numbers |= _summary(f'cohort/{method}', accuracy, likely) | {
        f'cohort/{method}/minus_bayes': float(gap),
        f'cohort/{method}/minus_bayes_se': float(error)}

    # Average logs over mice, then exponentiate: a mean of probabilities would favour easy mice.
    mean, error = statistics.mean_and_standard_error(likely)
    numbers[f'cohort/{method}/probability'] = float(np.exp(mean))
    numbers[f'cohort/{method}/probability_se'] = float(np.exp(mean) * error)
  return numbers


def tables(numbers: Mapping[str, float], animals: list[str], methods: list[str]) -> str:
  """Markdown tables of accuracy and of choice probability by animal, then of the cohort."""
  heads = [*animals, 'mean of real animals' if _real(animals) else 'mean']
  columns = [*(f'mice/{name}' for name in animals), 'mean']

  def cell(name, part):
    key = f'{name}/{part}'
    return figures.percent(numbers, key) if key in numbers else '-'

  parts = []
  for title, part in (('accuracy (%), held-out sessions', 'accuracy'),
                      ('exp(mean ln p) (%)', 'probability')):
    parts.append(figures.markdown_table([title, *heads], [
        [label(method), *(cell(f'{column}/{method}', part) for column in columns)]
        for method in methods]))

  of_cohort = [(label(method), *(cell(f'cohort/{method}', part)
                                 for part in ('accuracy', 'minus_bayes', 'probability')))
               for method in dict.fromkeys([*methods, 'bayes'])
               if f'cohort/{method}/accuracy' in numbers]
  parts.append(figures.markdown_table(
      ['simulated mice, second half of a window', 'accuracy (%)', 'minus optimal (%)',
       'exp(mean ln p) (%)'], of_cohort))
  return '\n\n'.join(parts)


def _largest_fit(numbers: Mapping[str, float]) -> str:
  """The fitted GLM-HMM with the most states, or the GLM if there is none."""
  fitted = [int(name.split('/')[1].removeprefix('glm_hmm')) for name in numbers
            if name.startswith('mean/glm_hmm') and name.endswith('/accuracy')]
  return f'glm_hmm{max(fitted)}' if fitted else 'glm'


def paragraph(numbers: Mapping[str, float], real: bool) -> str:
  """Paragraph that states the results, worded according to the numbers."""
  states = _largest_fit(numbers)

  def mean(method):
    return f'{100 * numbers[f"mean/{method}/accuracy"]:.1f} %'

  # Report each layout by name: picking the better of two would select on the reported result.
  def both(*methods):
    return ' and '.join(f'{mean(method)} ({label(method)})' for method in methods)

  gap = numbers['cohort/icl_stim_choice/minus_bayes']
  leak = numbers['cohort/icl_shift/minus_bayes']
  return (
      f'Held-out choices of {"the animals" if real else "the simulated animals"}: in context, '
      f'{both("icl_stim_choice", "icl_stim_choice_reward")}, from a window and without training on '
      f'any animal; {label(states)} fitted to the training sessions {mean(states)}, GLM '
      f'{mean("glm")}, a count in the same window {mean("context_ngram3")}. '
      f'Without the contrast, {both("icl_choice", "icl_choice_reward")}; bias only '
      f'{mean("bias")}. The shifted layout gives {mean("icl_shift")}, because it contains the '
      f'answer. On simulated mice the model in context is {100 * gap:+.1f} points from the best '
      f'prediction; shifted, {100 * leak:+.1f}.'
  )


# --- The figure.


def _bins(width: int) -> np.ndarray:
  """Edges of trial bins, finer at the beginning of a window."""
  edges = [0, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
  return np.array([edge for edge in edges if edge < width] + [width])


def curve(chances: np.ndarray, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Accuracy by number of trials read: (bin centres, means, standard errors over rows)."""
  right, edges = hits(chances, choices), _bins(choices.shape[1])
  parts = [np.nanmean(right[:, a:b], axis=1) for a, b in zip(edges, edges[1:])
           if not np.isnan(right[:, a:b]).all()]
  mean, error = zip(*(statistics.mean_and_standard_error(part[~np.isnan(part)]) for part in parts))
  middle = (edges[:-1] + edges[1:] - 1)[: len(parts)] / 2
  return middle, np.array(mean), np.array(error)


def _colour(method: str) -> str:
  return _COLOURS['glm_hmm' if method.startswith('glm_hmm') else method]


def write_figure(
    run: launch.Run,
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    cohort: Mapping[str, np.ndarray],
    numbers: Mapping[str, float],
) -> None:
  """Plots accuracy by trials read (cohort, animals) and by animal; writes the data as CSV."""
  path = run.workdir / 'figures' / 'icl_hmm_mice.png'
  rows = []
  real = _real(predictions) or list(predictions)
  largest = _largest_fit(numbers)

  def draw(axes, source, method, chances, choices):
    x, mean, error = curve(chances, choices)
    axes.plot(x, mean, color=_colour(method), label=label(method), marker='o', ms=3, lw=1.4)
    axes.fill_between(x, mean - error, mean + error, color=_colour(method), alpha=.15, lw=0)
    rows.extend((source, method, *row) for row in zip(x, mean, error))

  with figures.figure(path, 3, title='In-context prediction of mouse choices') as panels:
    for method in ('bayes', *_CURVES):
      draw(panels[0], 'cohort', method, cohort[f'chance/{method}'], cohort['choices'])
    panels[0].set_title('simulated mice, ± standard error over windows')

    windows = [predictions[name] for name in real if 'online/choices' in predictions[name]]
    for method in _CURVES if windows else ():
      chances, choices = (np.concatenate([arrays[key] for arrays in windows])
                          for key in (f'online/{method}', 'online/choices'))
      draw(panels[1], 'animals', method, chances, choices)
    for method in dict.fromkeys(('glm', largest)):
      panels[1].axhline(numbers[f'mean/{method}/accuracy'], color=_colour(method), ls='--',
                        label=f'{label(method)}, all training sessions')
    panels[1].set_title('animals, ± standard error over windows')

    for axes in panels[:2]:
      axes.set_xscale('symlog', linthresh=1)
      axes.set(xlabel='previous trials in the window', ylabel='accuracy', xlim=(0, None),
               ylim=(.45, 1))
      axes.legend(frameon=False, fontsize=6)

    _draw_bars(panels[2], list(predictions), largest, numbers)

  metrics.write_csv_atomic(
      path.with_suffix('.csv'), ['of', 'method', 'trials_read', 'accuracy', 'standard_error'], rows)


def _draw_bars(axes, names: list[str], largest: str, numbers: Mapping[str, float]) -> None:
  """Draws the accuracy of each method on the held-out sessions of each animal."""
  shown = [largest if name == 'glm_hmm' else name for name in _SHOWN]
  shown = [method for method in shown  # 'bayes' is known for simulated mice only.
           if any(f'mice/{name}/{method}/accuracy' in numbers for name in names)]

  for index, method in enumerate(shown):
    x = np.arange(len(names)) + (index - (len(shown) - 1) / 2) * .8 / len(shown)
    height, error = ([numbers.get(f'mice/{name}/{method}/{part}', np.nan) for name in names]
                     for part in ('accuracy', 'accuracy_se'))
    axes.bar(x, height, .8 / len(shown), yerr=error, color=_colour(method), label=label(method),
             error_kw={'lw': .8})

  axes.axhline(.5, color='0.4', lw=.8, ls=':', zorder=0)  # Chance.
  axes.set_xticks(range(len(names)), names, rotation=30, fontsize=7)
  # Room for the legend above the bars.
  axes.set(ylim=(.45, 1.12), yticks=np.arange(.5, 1.01, .1), ylabel='accuracy',
           title='held-out sessions, ± standard error over folds')
  axes.legend(frameon=False, fontsize=6, ncols=2, loc='upper left')


def write(
    run: launch.Run,
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    cohort: Mapping[str, np.ndarray],
) -> dict[str, float]:
  """Writes the tables and the figure, prints the tables, and returns the headline numbers."""
  numbers = animal_numbers(predictions) | cohort_numbers(cohort)
  names = list(predictions)
  methods = list(dict.fromkeys(
      method for arrays in predictions.values() for method, _ in _methods(arrays)))
  text = f'{tables(numbers, names, methods)}\n\n{paragraph(numbers, bool(_real(names)))}'
  metrics.write_text_atomic(run.table_path, text + '\n')

  header = ['animal', 'method', 'accuracy', 'standard_error', 'probability',
            'probability_standard_error']
  parts = ('accuracy', 'accuracy_se', 'probability', 'probability_se')
  metrics.write_csv_atomic(run.workdir / 'animals.csv', header, [
      (name, method, *(numbers[f'mice/{name}/{method}/{part}'] for part in parts))
      for name in names for method in methods if f'mice/{name}/{method}/accuracy' in numbers])

  write_figure(run, predictions, cohort, numbers)
  print(f'\n{text}\n\n{run.config.note}\n'
        f'figure: {run.workdir / "figures" / "icl_hmm_mice.png"}')
  return numbers
