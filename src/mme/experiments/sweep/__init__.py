"""Sweeps: many short pretrainings, ranked by a linear probe, the best repeated with other seeds.

No other package imports optuna.
"""

import logging

import optuna

optuna.logging.set_verbosity(logging.WARNING)  # `run.describe_trial` prints one line per trial instead
