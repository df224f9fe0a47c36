"""REBEL with intransitive preferences: `python -m experiments.rebel_games`."""
