"""The masked motion model and the classifier built on its encoder."""
