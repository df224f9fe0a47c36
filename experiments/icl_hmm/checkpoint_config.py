"""Config of the study of a language model on hidden Markov models."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.hmm import in_context
from jaxrl_llm.models import configs

SHORTEST = 4  # Symbols seen before the first prediction.


@dataclasses.dataclass
class IclHmmCheckpoint:
  """Study of a language model (`experiments.icl_hmm.checkpoint`).

  Attributes:
    seed: seed of the trajectories, and of the tokenisation 'random'.
    checkpoint_dir: a Hugging Face checkpoint with its tokenizer, or a directory of this project's
      parameters whose tokenizer is known.
    results_file: a CSV file of the published schema (`hmm.published_results`); its rows are the
      models. Its records of other language models are reported too.
    tokenisations: comma-separated subset of 'abc', '123' and 'random' (`hmm.in_context`).
    num_sequences: trajectories per model (4,096 in the published file).
    max_length: symbols seen before the last prediction, a power of two; lengths are 4, 8, 16, ...
    batch_size: trajectories per forward pass.
    num_states: M of the models to use; 0 for any.
    num_symbols: L of the models to use; 0 for any.
    max_symbols: the largest L of the models to use; 0 for any. A tokenizer that splits numbers into
      digits has ten tokens of the kind '123'.
    max_rows: maximum number of these models, spread evenly over the file; 0 for all.
    model: how the language model is computed (param_dtype, compute_dtype, scan_unroll ...); its
      shape comes from the checkpoint.
    note: comment that is printed with the results.
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
  max_symbols: int = 0
  max_rows: int = 0
  model: configs.TransformerConfig = dataclasses.field(default_factory=configs.TransformerConfig)
  note: str = ''

  @property
  def kinds(self) -> tuple[str, ...]:
    """The tokenisations as a tuple."""
    return tuple(kind.strip() for kind in self.tokenisations.split(','))

  @property
  def lengths(self) -> tuple[int, ...]:
    """Numbers of symbols seen: 4, 8, ..., `max_length`."""
    return tuple(2**k for k in range(SHORTEST.bit_length() - 1, self.max_length.bit_length()))

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.required(self, 'config', 'checkpoint_dir', 'results_file')
    checks.model_directory(self, 'config', 'checkpoint_dir')

    # A single trajectory has no standard error.
    checks.at_least(
        self, 'config', seed=0, num_sequences=2, max_length=SHORTEST, batch_size=1, num_states=0,
        num_symbols=0, max_symbols=0, max_rows=0)
    if self.max_length.bit_count() != 1:
      raise ValueError(f'config.max_length must be a power of two, got {self.max_length}')

    unknown = [kind for kind in self.kinds if kind not in in_context.KINDS]
    if unknown or len(set(self.kinds)) < len(self.kinds):
      raise ValueError(
          f'config.tokenisations must be distinct kinds of {", ".join(in_context.KINDS)}, '
          f'separated by commas, got {self.tokenisations!r}')

    with checks.within('config.model'):
      dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1).validate()

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    return {
        'the sequences of a model (config.num_sequences)':
            4 * self.num_sequences * self.max_length,
        'a batch of sequences (config.batch_size)': 4 * self.batch_size * self.max_length,
    }
