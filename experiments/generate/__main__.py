r"""Samples from a policy, for one prompt to the terminal or for a file of prompts to JSONL.

    python -m experiments.generate --policy=DIR --prompt='The capital of France is'
    python -m experiments.generate --policy=DIR --prompts=FILE.jsonl --out=SAMPLES.jsonl

DIR is a Hugging Face checkpoint, or a run's output (WORKDIR/params, WORKDIR/trained; most of these
need --tokenizer). Each line of the file has a `prompt`, or `messages` for the chat template. A
sample depends only on (seed, prompt index, sample index), up to rounding at ties. The output file
is written once it is complete; until then, the same command resumes.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from jaxrl_llm.data import batching, chat_templates, columns, jsonl, model_files, tokenizers
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.rewards import response_text
from jaxrl_llm.runs import checkpoint_sources, conversion, launch, memory
from jaxrl_llm.runs import records as records_lib
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.sampling import decode, stream
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.tasks import arithmetic, chat, countdown
from jaxrl_llm.training import fingerprint, loop, metrics, rng
from jaxrl_llm.types import STOPPED, ModelFns, Params, Rollouts, Tokenizer

_SHORTEST = 16  # Shortest padded prompt length; the others are powers of two.
_MOST_TOKENS = 256  # Upper bound for --max_tokens=0.


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  integer = functools.partial(flags.DEFINE_integer, flag_values=values)
  number = functools.partial(flags.DEFINE_float, flag_values=values)
  text('policy', '', 'directory of the parameters')
  text('prompt', None, 'one prompt')
  text('prompts', None, 'a file of prompts: objects with `prompt` or `messages`')
  text('out', None, 'JSON Lines file for the samples; required with --prompts')
  text('tokenizer', '', "directory of the tokenizer; by default the policy's")
  text('chat_template', 'auto', "'auto' for the tokenizer's, if it has one; 'none'; 'chatml'; or "
       'the path of a template; a prompt is then the message of the user')
  text('system', '', 'system message of conversations that have none')

  integer('num_samples', 1, 'samples per prompt', lower_bound=1)
  integer('max_tokens', 0, f'maximum tokens per sample; 0 is {_MOST_TOKENS}, or as many as fit',
          lower_bound=0)
  number('temperature', 1.0, 'sampling temperature; 0 is greedy', lower_bound=0.0)
  integer('top_k', 0, 'sample from the k most probable tokens; 0 is off', lower_bound=0)
  number('top_p', 1.0, 'sample from the smallest nucleus of this probability; 1 is off')

  flags.DEFINE_multi_string('stop', [], 'text that ends a sample, without it; one or several, in '
                            "addition to the model's stop tokens", flag_values=values)

  integer('seed', 0, 'seed of the samples', lower_bound=0, upper_bound=2**32 - 1)
  integer('batch_size', 16, 'prompts per batch', lower_bound=1)
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'],
                    'dtype of parameters and activations', flag_values=values)

  text('mesh', '', 'data x fsdp x tensor, such as 1x8x1; by default one device')
  flags.DEFINE_bool('stream', None, 'show the (first) sample of a single prompt while it is '
                    'decoded; on by default', flag_values=values)


class Prompt(NamedTuple):
  """An encoded prompt.

  Attributes:
    id: id from the file, or the prompt's index.
    text: text that the model reads.
    ids: token ids of the text.
  """

  id: Any
  text: str
  ids: list[int]


@dataclasses.dataclass
class Generator:
  """A policy with everything needed to sample from it.

  Attributes:
    values: the flags.
    model: the policy.
    params: its parameters on the mesh.
    tokenizer: its tokenizer.
    tokenizer_dir: directory of the tokenizer; '' for a character tokenizer.
    mesh: the device mesh.
    max_length: maximum slots of prompt and sample together.
    max_tokens: maximum tokens of a sample.
    stops: texts that end a sample.
  """

  values: flags.FlagValues
  model: ModelFns
  params: Params
  tokenizer: Tokenizer
  tokenizer_dir: str
  mesh: jax.sharding.Mesh
  max_length: int
  max_tokens: int = 0
  stops: tuple[str, ...] = ()

  def fit(self, prompts: Sequence[Prompt]) -> None:
    """Sets `max_tokens`; raises UsageError for a prompt that leaves no room for them."""
    requested = self.values.max_tokens
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    limit = self.max_length - (requested or 1)
    if len(longest.ids) > limit:
      raise UsageError(
          f'prompts must have at most {max(limit, 0)} tokens, got {len(longest.ids)} (prompt '
          f'{longest.id!r}): prompt and sample (--max_tokens={requested}) must fit into the '
          f'{self.max_length} slots of the model'
      )
    self.max_tokens = requested or min(_MOST_TOKENS, self.max_length - len(longest.ids))

  def sampler(self) -> Callable[..., Rollouts]:
    """Makes a jitted sampler."""
    return jax.jit(decode.make_sampler(self.model, **self._sampling()))

  def streamed(self, emit: Callable[[np.ndarray], None]) -> Callable[..., Rollouts]:
    """Makes a sampler that passes each token to `emit`; see `stream.streamed`."""
    begin, advance, finish = decode.make_parts(self.model, **self._sampling())
    parts = decode.SamplerParts(
        jax.jit(begin), jax.jit(advance, donate_argnums=0), jax.jit(finish))
    return stream.streamed(parts, emit)

  def _sampling(self) -> dict[str, Any]:
    values = self.values
    return {
        'num_samples': values.num_samples, 'max_tokens': self.max_tokens,
        'stop_ids': self.tokenizer.stop_ids, 'pad_id': self.tokenizer.pad_id,
        'temperature': values.temperature, 'top_k': values.top_k, 'top_p': values.top_p,
        'stop_sequences': response_text.stop_sequences(self.tokenizer, self.stops),
    }

  def sample(
      self, sampler: Callable[..., Rollouts], prompts: Sequence[Prompt], first: int, rows: int
  ) -> Rollouts:
    """Samples for the prompts with indices `first`, first + 1 ...; a batch has `rows` of them."""
    shards = mesh_lib.num_batch_shards(self.mesh)
    rows = -(-rows // shards) * shards  # Padding rows are dropped at the end.
    numbers = np.arange(first, first + len(prompts), dtype=np.int32)
    filled = [*prompts, *[prompts[0]] * (rows - len(prompts))]
    numbers = np.append(numbers, np.full(rows - len(prompts), first, np.int32))

    longest = max(len(prompt.ids) for prompt in prompts)
    # Few distinct lengths, so that few programs are compiled.
    length = max(_SHORTEST, 1 << (longest - 1).bit_length())
    length = max(min(length, self.max_length - self.max_tokens), longest)
    arrays = batching.left_pad([prompt.ids for prompt in filled], length, self.tokenizer.pad_id)
    key = rng.stream_key(rng.base_key(self.values.seed), rng.Stream.SAMPLE_EVAL)
    arrays = jax.device_put((*arrays, numbers), mesh_lib.batch_sharding(self.mesh))
    rollouts = jax.device_get(sampler(self.params, *arrays, key))
    return jax.tree.map(lambda leaf: leaf[: len(prompts)], rollouts)

  def records(
      self, prompts: Sequence[Prompt], rollouts: Rollouts
  ) -> Iterator[dict[str, Any]]:
    """Yields one output record per sample; 'log_prob' is of the whole response, in nats."""
    for row, prompt in enumerate(prompts):
      for sample in range(self.values.num_samples):
        ids = rollouts.tokens[row, sample, : rollouts.lengths[row, sample]].tolist()
        stopped = rollouts.stop_reason[row, sample] == STOPPED
        text = self.tokenizer.decode(ids)
        if ending := response_text.find(self.tokenizer.decode, ids, self.stops):
          text, ids, stopped = ending.text, ids[: ending.num_tokens], True
        yield metrics.plain({
            'id': prompt.id, 'sample': sample, 'prompt': prompt.text,
            'response': text, 'stop_reason': 'stop' if stopped else 'length', 'tokens': ids,
            'log_prob': rollouts.log_probs[row, sample, : len(ids)].sum(),
        })


def main(values: flags.FlagValues) -> None:
  """Samples as the flags request."""
  check_flags(values)
  generator = load(values)
  prompts = read_prompts(values, generator.tokenizer, generator.tokenizer_dir)
  generator.fit(prompts)
  with jax.set_mesh(generator.mesh):
    if values.prompts is None:
      records = show(generator, prompts)
      if values.out:
        jsonl.write_jsonl(values.out, records)
    else:
      write(generator, prompts)


def check_flags(values: flags.FlagValues) -> None:
  """Raises UsageError for inconsistent flags, before anything is loaded."""
  if not values.policy:
    raise UsageError('--policy=DIR is required: a Hugging Face checkpoint, or WORKDIR/trained')
  if (values.prompt is None) == (values.prompts is None):
    raise UsageError('give either --prompt=TEXT or --prompts=FILE.jsonl')
  if values.prompts is not None and not values.out:
    raise UsageError('--prompts needs --out=FILE.jsonl')
  if values.prompts is not None and values.stream:
    raise UsageError('--stream is for a single --prompt')

  # A kill may have come between the last two steps of `write`, which then checks the samples.
  path = pathlib.Path(values.out or '')
  may_be_ours = values.prompts is not None and partial_path(path).exists()
  if values.out and path.exists() and not may_be_ours:
    raise UsageError(f'--out: {values.out!r} exists already: remove it or give another name')
  if values.out and not path.absolute().parent.is_dir():
    raise UsageError(f'--out must be in an existing directory, got {values.out!r}')

  if '' in values.stop:
    raise UsageError("--stop must be a text, got ''")
  if values.system and values.chat_template == 'none':
    raise UsageError(f'--system needs a chat template, got {values.system!r} and none')
  if values.mesh and not re.fullmatch(r'\d+x\d+x\d+', values.mesh):
    raise UsageError(f'--mesh must be three sizes such as 1x8x1, got {values.mesh!r}')

  restricts = values.num_samples > 1 or values.top_k or values.top_p < 1
  if values.temperature == 0 and restricts:
    raise UsageError(
        '--temperature=0 always chooses the same: it needs --num_samples=1, --top_k=0 and '
        f'--top_p=1, got {values.num_samples}, {values.top_k} and {values.top_p}'
    )


def load(values: flags.FlagValues) -> Generator:
  """Loads the policy and its tokenizer; raises ValueError with one line if they are unusable."""
  stored = conversion.read(
      values.policy, field='--policy', tokenizer_named=bool(values.tokenizer)
  )
  folder, tokenizer = conversion.find_tokenizer(stored, values.tokenizer)
  tokenizer = tokenizer or character_tokenizer(stored.source)

  config = dataclasses.replace(
      stored.model, compute_dtype=values.dtype,
      # A parameter directory of this project is read in its own dtype.
      param_dtype=values.dtype if stored.source.checkpoint else stored.model.param_dtype,
      # Unrolled layers suit CPUs; elsewhere compilation would take minutes.
      scan_unroll=0 if jax.default_backend() == 'cpu' else 1,
  )

  mesh = make_mesh(values.mesh)
  rows = values.num_samples * (1 if values.prompts is None else values.batch_size)
  memory.check({
      'the parameters (--policy)':
          memory.item_bytes(config.param_dtype) * memory.num_weights(config),
      'the samples of a batch (--num_samples, --batch_size)': memory.cache_bytes(config, rows, 1),
  })
  model = policy_lib.make(config)
  params = stored.source.load(setup_lib.abstract_params(model, mesh))
  return Generator(
      values, model, params, tokenizer, folder, mesh, config.max_length, 0, tuple(values.stop))


def make_mesh(shape: str) -> jax.sharding.Mesh:
  """Makes the mesh of --mesh; raises UsageError if it does not use all devices."""
  if not shape:
    return mesh_lib.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  sizes = tuple(map(int, shape.split('x')))
  if math.prod(sizes) != jax.device_count():
    raise UsageError(
        f'--mesh (data x fsdp x tensor) must use all {jax.device_count()} devices, got {shape}'
    )
  return mesh_lib.make_mesh(*sizes)


def character_tokenizer(source: checkpoint_sources.CheckpointSource) -> Tokenizer:
  """Returns the tokenizer of the character-level task that a policy was trained on.

  A parameter directory of this project has no tokenizer but records which one it needs. Raises
  UsageError if that is not a character tokenizer.
  """
  for alphabet in (arithmetic.ALPHABET, countdown.ALPHABET):
    tokenizer = tokenizers.CharacterTokenizer(alphabet)
    if tokenizer.fingerprint == source.tokenizer:
      return tokenizer
  whole = ' of the full tokenizer of its reduced vocabulary' if source.kept_ids else ''
  raise UsageError(f'{source.directory} has no tokenizer: give --tokenizer=DIR{whole}')


def read_prompts(
    values: flags.FlagValues, tokenizer: Tokenizer, tokenizer_dir: str
) -> list[Prompt]:
  """Reads, renders and encodes the prompts of the flags."""
  rows, sources = [{'prompt': values.prompt}], ['--prompt']
  if values.prompts is not None:
    lines = jsonl.read_rows(values.prompts)
    rows = [line.value for line in lines]
    sources = [f'{values.prompts}, line {line.line}' for line in lines]

  template = find_template(values, tokenizer_dir)
  for row, source in zip(rows, sources):
    if isinstance(row.get('prompt'), str) == isinstance(row.get('messages'), list):
      raise UsageError(f"{source}: needs either a text 'prompt' or a list 'messages'")
    try:
      columns.check_prompt(row, ('prompt', 'messages', *columns.REASONING))
    except ValueError as error:
      raise UsageError(f'{source}: {error}') from None

    if row.get('messages') == []:
      raise UsageError(f"{source}: 'messages' must not be empty")
    if template is None and 'messages' in row:
      raise UsageError(f"{source}: 'messages' need a chat template (--chat_template)")

  if template is None:
    texts = [row['prompt'] for row in rows]
  else:
    conversations = [conversation(row, values.system) for row in rows]
    texts = template.render_many(conversations, add_generation_prompt=True)

  prompts = []
  for index, (row, source, text) in enumerate(zip(rows, sources, texts)):
    ids = encode(text, tokenizer, is_rendered=template is not None)
    if not ids:
      raise UsageError(f'{source}: the prompt has no tokens')
    prompts.append(Prompt(row.get('id', index), text, ids))
  return prompts


def conversation(row: dict[str, Any], system: str) -> list[chat_templates.Message]:
  """Messages of a row, after the system message unless they begin with their own."""
  messages = row.get('messages', [{'role': 'user', 'content': row.get('prompt')}])
  has_own = messages and isinstance(messages[0], dict) and messages[0].get('role') == 'system'
  if not system or has_own:
    return messages
  return [{'role': 'system', 'content': system}, *messages]


def find_template(
    values: flags.FlagValues, tokenizer_dir: str
) -> chat_templates.ChatTemplate | None:
  """Returns the chat template of the flags, or None for plain prompts."""
  if values.system and values.chat_template == 'auto' and tokenizer_dir:
    return chat.load_template('auto', tokenizer_dir)
  try:
    template = chat.find_template(values.chat_template, tokenizer_dir)
  except ValueError as error:
    raise UsageError(f'{error} (--chat_template)') from error
  if template is None and values.system:
    raise UsageError('a chat template needs the directory of a tokenizer (--tokenizer=DIR)')
  if template is None and values.chat_template == 'auto':
    print('[no chat template: prompts are plain text]', file=sys.stderr, flush=True)
  return template


def encode(text: str, tokenizer: Tokenizer, *, is_rendered: bool) -> list[int]:
  """Encodes a prompt. A template writes the start tokens itself, as a plain prompt may."""
  ids, start = tokenizer.encode(text), list(tokenizer.start_ids)
  return ids if is_rendered or ids[: len(start)] == start else start + ids


def show(generator: Generator, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
  """Samples for a single prompt, prints to the terminal, and returns the records."""
  printer = Printer(generator.tokenizer, generator.stops)
  live = generator.values.stream in (None, True)
  with _signals_kill():
    sampler = generator.streamed(printer.push) if live else generator.sampler()
    rollouts = generator.sample(sampler, prompts, 0, rows=1)
    records = list(generator.records(prompts, rollouts))
    printer.finish(records[0]['tokens'])
    _note(records[0])
    for record in records[1:]:
      print(f'\n{record["response"]}', flush=True)
      _note(record)
  return records


class Printer:
  """Writes the first sample to the terminal while it is decoded."""

  def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
    """Starts a sample without tokens, which one of `stops` ends."""
    self._text = stream.TextStream(tokenizer.decode)
    self._cutter = response_text.Cutter(stops)
    self._stop_ids = tokenizer.stop_ids
    self._shown, self._stopped = 0, False

  def push(self, tokens: np.ndarray) -> None:
    """Shows the next token of the first row."""
    if not self._stopped:  # After its stop token a sample is padded while the others continue.
      self._write(self._text.push(int(tokens[0])))
      self._shown += 1
      self._stopped = int(tokens[0]) in self._stop_ids

  def finish(self, tokens: Sequence[int]) -> None:
    """Shows the rest of the sample."""
    self._write(''.join(map(self._text.push, tokens[self._shown :])) + self._text.flush())
    sys.stdout.write(self._cutter.flush() + '\n')
    sys.stdout.flush()

  def _write(self, text: str) -> None:
    sys.stdout.write(self._cutter.push(text))
    sys.stdout.flush()


@contextlib.contextmanager
def _signals_kill() -> Iterator[None]:
  """Lets Ctrl-C or a closed pipe end the process at once; there is nothing to lose.

  Python would see Ctrl-C only when the device is done, and the closed pipe as a device error.
  """
  numbers = (signal.SIGINT, signal.SIGPIPE)
  previous = [signal.signal(number, signal.SIG_DFL) for number in numbers]
  try:
    yield
  finally:
    for number, handler in zip(numbers, previous):
      signal.signal(number, handler)


def _note(record: dict[str, Any]) -> None:
  """Prints a sample's statistics to stderr, away from its text."""
  sys.stdout.flush()
  print(
      f'[sample {record["sample"]}: {len(record["tokens"])} tokens, {record["stop_reason"]}, '
      f'log-prob {record["log_prob"]:.3f}]', file=sys.stderr, flush=True,
  )


def partial_path(path: pathlib.Path) -> pathlib.Path:
  """Returns the path of the samples of --out until it is complete."""
  return path.with_name(f'{path.name}.partial')


def write(generator: Generator, prompts: Sequence[Prompt]) -> None:
  """Samples for the prompts of a file and writes --out once it is complete.

  Earlier samples are in --out.partial, whose first line identifies the run they belong to.
  """
  values = generator.values
  path = pathlib.Path(values.out)
  partial = partial_path(path)
  size, per_prompt = values.batch_size, values.num_samples

  provenance = metrics.plain({
      'policy': fingerprint.of_params(generator.params),
      'tokenizer': generator.tokenizer.fingerprint,
      'prompts': model_files.fingerprint(prompts),
      'max_tokens': generator.max_tokens,
      **{name: values[name].value for name in (
          'num_samples', 'temperature', 'top_k', 'top_p', 'seed', 'batch_size', 'dtype')},
      **({'stop': list(generator.stops)} if generator.stops else {}),
  })

  batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
  sampler = generator.sampler()
  with records_lib.open_records(
      partial, provenance, batch=size * per_prompt, total=len(prompts) * per_prompt
  ) as file:
    records = file.records
    done = -(-len(records) // (size * per_prompt))
    if path.exists() and (done < len(batches) or records != _read_samples(path)):
      raise UsageError(f'--out: {values.out!r} exists already: remove it or give another name')

    with loop.Stopper() as stopper, loop.progress(len(batches), 'batches', done) as bar:
      for number, batch in list(enumerate(batches))[done:]:
        rollouts = generator.sample(sampler, batch, number * size, rows=size)

        for record in generator.records(batch, rollouts):
          file.append(record)
        bar.update(1, tokens=sum(len(record['tokens']) for record in records))
        stopper.check(f'stopped; complete batches are saved in {partial}')

  jsonl.write_jsonl(path, records)
  partial.unlink()
  print(f'{len(records)} samples: {path}')


def _read_samples(path: pathlib.Path) -> list[Any] | None:
  """Returns the records of a complete --out, or None if it is not JSON Lines."""
  try:
    return [line.value for line in jsonl.read_rows(path)]
  except ValueError:
    return None


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
