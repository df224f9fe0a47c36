"""Hidden Markov models: filtering, oracles, learners, and in-context learning."""
