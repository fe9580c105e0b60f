"""Motion targets: flow, camera motion, trajectories, HOG, and their assembly into what a token predicts."""
