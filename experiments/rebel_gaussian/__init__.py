"""REBEL against PPO on a chain of Gaussians: `python -m experiments.rebel_gaussian`."""
