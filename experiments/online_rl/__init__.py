"""Online RL on a task's own reward, by any of the algorithms that the papers compare with."""
