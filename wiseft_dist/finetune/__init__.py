"""From theta_0 to theta_1: recipes say what is learnt, the engine how, checkpoints keep it."""
