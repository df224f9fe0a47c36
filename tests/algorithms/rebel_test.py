"""REBEL: its identities through the real train step, and that it learns."""

from jaxrl_llm.algorithms import rebel
from tests.algorithms import groups, tiny


def _make(config, optimizer):
  return rebel.make(config, tiny.MODEL, optimizer)


run = groups.runner(_make, rebel.Config, num_epochs=1, temperature=1.0, kl_coefficient=0.3)


def test_R20_the_ratio_is_one_before_the_first_step():
  groups.check_initial_ratio(run, groups.batch())


def test_padding_has_no_part():
  groups.check_padding(run, groups.batch())


def test_orders_have_no_part():
  groups.check_orders(run, groups.batch())


def test_rows_that_do_not_count_have_no_part():
  groups.check_rows_that_do_not_count(run, groups.batch())


def test_micro_batches_agree():
  groups.check_micro_batches(run, groups.batch())


def test_one_prompt():
  groups.check_one_prompt(run, groups.batch())


def test_seeds_side_by_side():
  groups.check_seeds(_make, rebel.Config(num_epochs=2, num_minibatches=2), groups.batch())
