-- Run by the image once, when the data folder is empty.
CREATE DATABASE mlflow;
CREATE DATABASE optuna;
