"""Bradley-Terry reward models: `python -m experiments.reward_model`."""
