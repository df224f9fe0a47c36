"""The workloads in transformers and peft, on torch.

Everything of torch is imported here, when a model is made: these libraries are not dependencies.
"""

import copy
import importlib.util
from typing import Any

import numpy as np

from experiments.bench_transformers.workload import Sizes, Workload

PACKAGES = ('torch', 'transformers', 'peft')
_PROJECTIONS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')


def check_installed() -> None:
  """Raises ValueError that names the missing packages and says how to install them."""
  missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
  if missing:
    raise ValueError(
        f'{", ".join(missing)} must be installed to compare with: pip install -r '
        'requirements-parity.txt (or --notransformers measures this project alone)')


class Model:
  """A checkpoint in transformers, with as many threads as XLA uses."""

  def __init__(self, directory: str, sizes: Sizes, *, threads: int):
    """Loads it."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(sizes.seed)
    self._sizes, self._torch = sizes, torch
    self._model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, sizes.dtype))
    self._vocab_size = self._model.config.vocab_size

  def logits(self, tokens: np.ndarray) -> np.ndarray:
    """Returns the logits [B, V] after the last of `tokens` [B, T]."""
    with self._torch.inference_mode():
      return self._model(self._ids(tokens)).logits[:, -1].float().numpy()

  def sampling(self, batch: int) -> Workload:
    """`generate` at temperature 1 with its KV cache, one response per prompt."""
    sizes = self._sizes
    prompts = self._ids(sizes.prompts(batch, self._vocab_size))
    options = {
        'do_sample': True, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'pad_token_id': 0,
        'max_new_tokens': sizes.new_tokens, 'min_new_tokens': sizes.new_tokens}

    def run():
      with self._torch.inference_mode():
        ids = self._model.generate(
            prompts, attention_mask=self._torch.ones_like(prompts), **options)
      if ids.shape[1] != sizes.prompt_tokens + sizes.new_tokens:
        raise ValueError(
            f'transformers must sample {sizes.new_tokens} tokens, got '
            f'{ids.shape[1] - sizes.prompt_tokens}')
      return 0.0

    return Workload(run, batch * sizes.new_tokens)

  def training(self, kind: str) -> Workload:
    """An AdamW step on random tokens: of adapters ('lora') or of all parameters ('full')."""
    torch, sizes = self._torch, self._sizes
    model = copy.deepcopy(self._model)
    if kind == 'lora':
      import peft

      model = peft.get_peft_model(model, peft.LoraConfig(
          r=sizes.rank, lora_alpha=2 * sizes.rank, lora_dropout=0.0,
          target_modules=list(_PROJECTIONS)))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    tokens = self._ids(sizes.sequences(self._vocab_size))

    def run():
      total = 0.0
      optimizer.zero_grad(set_to_none=True)
      for part in tokens.chunk(sizes.micro_batches):
        logits = model(part[:, :-1]).logits.float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), part[:, 1:].flatten()) / sizes.micro_batches
        loss.backward()
        total += float(loss.detach())
      optimizer.step()
      return total

    return Workload(run, sizes.rows * sizes.sequence_tokens)

  def _ids(self, tokens: np.ndarray) -> Any:
    return self._torch.from_numpy(tokens.astype(np.int64))
