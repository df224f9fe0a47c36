"""Problem generators and environments."""
