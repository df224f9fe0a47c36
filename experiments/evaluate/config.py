"""Config of experiments/evaluate/."""

import dataclasses

from experiments.evaluate import shots
from jaxrl_llm import checks, types
from jaxrl_llm.evaluation import majority
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.tasks import jsonl


@dataclasses.dataclass
class EvaluatePolicy(config_lib.PromptConfig):
  """Config of experiments/evaluate/.

  The shape of `model` comes from `policy_init_from`, which is required.

  Attributes:
    prompt_format: 'plain' for the task's prompts as they are; 'question_answer' for "Question: ",
      the prompt, a line break and "Answer:".
    num_shots: solved problems before each problem.
    shots_file: a file of them in the data directory, of which the first are used: objects with
      'prompt' and 'response', or 'question' and 'answer'; '' chooses demonstrations of the task
      (the training split) by the seed.
    shots_as_turns: whether they are turns of the conversation, which needs a chat template, and not
      in the text of the prompt.
    stop_strings: comma-separated texts that end a response, with \\n for a line break; '' for
      none.
    num_samples: n samples per problem.
    temperature: sampling temperature; 0 always takes the most probable token.
    top_k: sample from the k most probable tokens; 0 is off.
    top_p: sample from the smallest nucleus of this probability; 1 is off.
    greedy: also decode one greedy response per problem.
    batch_size: problems per batch.
  """

  task: task_config.TaskConfig = dataclasses.field(default_factory=jsonl.Config)
  prompt_format: str = 'plain'
  num_shots: int = 0
  shots_file: str = ''
  shots_as_turns: bool = False
  stop_strings: str = ''
  num_samples: int = 4
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  greedy: bool = True
  batch_size: int = 64

  def used(self, task: types.Task, *, fine_tunes: bool = False) -> types.Task:
    """Returns the task with only its held-out problems, and the shots before each."""
    return dataclasses.replace(shots.add(self, task), demonstrations=[], train=[])

  def stops(self) -> tuple[str, ...]:
    """Returns the stop strings."""
    return tuple(filter(None, self.stop_strings.replace('\\n', '\n').split(',')))

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {'batch_size': (self.batch_size, 1)}

  def num_rows(self) -> dict[str, int]:
    """See `config_lib.RunConfig.num_rows`."""
    return {**super().num_rows(), 'num_samples': self.batch_size * self.num_samples}

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    if not self.policy_init_from:
      raise ValueError(
          'config.policy_init_from must be the directory of a policy (a Hugging Face checkpoint, '
          "or WORKDIR/params or WORKDIR/trained of a run), got ''"
      )

    super().validate()
    checks.at_least(self, 'config', num_samples=1, top_k=0, batch_size=1)
    checks.at_most(self, 'config', num_samples=majority.MAX_SAMPLES)
    checks.at_least(self, 'config', num_shots=0)
    checks.one_of(self, 'config', prompt_format=shots.PROMPT_FORMATS)
    if not self.num_shots:
      checks.fixed(self, 'config', 'without config.num_shots', shots_file='', shots_as_turns=False)
    if self.chat_template == 'none':
      checks.fixed(self, 'config', "with chat_template 'none'", shots_as_turns=False)
    checks.non_negative(self, 'config', 'temperature')
    checks.positive(self, 'config', 'top_p')
    checks.at_most(self, 'config', top_p=1)

    if self.temperature == 0:
      checks.fixed(self, 'config', 'with temperature 0', num_samples=1, top_k=0, top_p=1.0)
