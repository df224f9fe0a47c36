"""What the config of the study of a language model on hidden Markov models can set."""

import dataclasses
import pathlib

from jaxrl_llm import checks
from jaxrl_llm.hmm import in_context
from jaxrl_llm.models import configs

SHORTEST = 4  # Symbols seen at the first place.


@dataclasses.dataclass
class IclHmmCheckpoint:
  """One study of a language model (`icl_hmm_checkpoint`).

  Attributes:
    seed: of the trajectories, and of the tokenisation 'random'.
    checkpoint_dir: a Hugging Face checkpoint with its tokenizer, or a folder of parameters of
      this project's whose tokenizer is known.
    results_file: a CSV file of the published schema (`tasks.hmm_results`); its rows are the
      models. What it records of other language models is shown beside.
    tokenisations: of 'abc', '123' and 'random' (`evaluation.in_context`), with commas between.
    num_sequences: trajectories a model (4,096 in the published file).
    max_length: symbols seen at the last place, a power of two; the places are 4, 8, 16, ...
    batch_size: trajectories that the language model reads together.
    num_states: M of the models that are used; 0 is any.
    num_symbols: L of the models that are used; 0 is any.
    max_rows: of these models at most so many, spread evenly over the file; 0 is all.
    model: how the language model is computed (param_dtype, compute_dtype, scan_unroll ...); its
      shape is that of the folder.
    note: what a reader must know; printed with the results.
  """

  seed: int = 0
  checkpoint_dir: str = ''
  results_file: str = ''
  tokenisations: str = ','.join(in_context.KINDS)
  num_sequences: int = 64
  max_length: int = 2_048
  batch_size: int = 8
  num_states: int = 0
  num_symbols: int = 0
  max_rows: int = 0
  model: configs.TransformerConfig = dataclasses.field(default_factory=configs.TransformerConfig)
  note: str = ''

  @property
  def kinds(self) -> tuple[str, ...]:
    """The tokenisations one by one."""
    return tuple(kind.strip() for kind in self.tokenisations.split(','))

  @property
  def lengths(self) -> tuple[int, ...]:
    """The places: 4, 8, ..., `max_length`."""
    return tuple(2**k for k in range(SHORTEST.bit_length() - 1, self.max_length.bit_length()))

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    if not self.checkpoint_dir:
      raise ValueError('a folder of a language model is needed: --config.checkpoint_dir=DIR')
    if not pathlib.Path(self.checkpoint_dir).is_dir():
      raise ValueError(f'config.checkpoint_dir is no folder: {self.checkpoint_dir!r}')
    if not self.results_file:
      raise ValueError('a CSV file of models is needed: --config.results_file=FILE.csv')
    # Of one trajectory there is no standard error.
    checks.at_least(self, 'config', seed=0, num_sequences=2, max_length=SHORTEST, batch_size=1,
                      num_states=0, num_symbols=0, max_rows=0)
    if self.max_length.bit_count() != 1:
      raise ValueError(f'config.max_length must be a power of two, got {self.max_length}')
    unknown = [kind for kind in self.kinds if kind not in in_context.KINDS]
    if unknown or len(set(self.kinds)) < len(self.kinds):
      raise ValueError(
          f'config.tokenisations must be some of {", ".join(in_context.KINDS)}, each once, with '
          f'commas between, got {self.tokenisations!r}')
    with checks.within('config.model'):
      dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1).validate()
