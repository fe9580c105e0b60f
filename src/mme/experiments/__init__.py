"""Studies of many runs: hyperparameter sweeps, objective ablations, reproduction of a recorded run."""
