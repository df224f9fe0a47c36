"""PPO's critic: a scalar network that starts from the policy's trunk, with a head of zeros.

The critic has a trunk of its own, also where only adapters are trained: PPO needs the memory of two
models.
"""

from collections.abc import Callable

from jaxrl_llm.models import value
from jaxrl_llm.runs import finetuning
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import rng
from jaxrl_llm.types import Params


def make(setup: setup_lib.Setup) -> finetuning.Finetuning:
  """Makes the critic's network; the same parts of it are trained as of the policy."""
  network = value.make(setup.model)
  return finetuning.make(
      network, setup_lib.abstract_params(network, setup.mesh), lora=setup.finetuning.lora,
      last_layers=setup.finetuning.last_layers)


def initial(
    setup: setup_lib.Setup, critic: finetuning.Finetuning
) -> Callable[[Params], Params]:
  """Returns a function from the policy's plain parameters to {'value': the critic's}."""
  network = value.make(setup.model)
  init_key, adapter_key = (rng.stream_key(setup.key, rng.Stream.CRITIC, i) for i in range(2))

  def make_params(policy: Params) -> Params:
    plain = value.with_trunk(network.init(init_key), policy)
    return {'value': critic.start(plain, adapter_key)}

  return make_params
