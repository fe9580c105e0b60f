"""Sweeps: many short pretrainings, ranked by a probe on the validation split.

The only package that speaks to Optuna.
"""

import logging

import optuna

optuna.logging.set_verbosity(logging.WARNING)  # what became of a trial is said in our words
