"""REBEL with intransitive preferences: rock, paper, scissors, five seeds.

This is not a table of the paper, which has no experiment on general preferences. It measures the
paper's guarantee for them: from (0.6, 0.3, 0.1) with η = 0.05 and 2,000 iterations the average
policy can lose at most 0.048 to any other. The program's docstring describes the arms.

Cost: about a minute and a half on two CPU cores.
Command: python -m experiments.rebel_games
"""

from experiments.rebel_games import config as games_config


def get_config() -> games_config.RebelGames:
  return games_config.RebelGames(
      note='y is the policy\'s own; y\' comes from a data set that holds each move equally often '
           '(config.algorithm.offline_fraction=0 draws it from the policy, too).',
  )
