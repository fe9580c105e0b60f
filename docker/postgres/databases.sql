-- Run once, on an empty data folder.
CREATE DATABASE mlflow;
CREATE DATABASE optuna;
