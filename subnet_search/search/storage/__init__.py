"""Reading and writing Optuna storages. Imports nothing, so that `study list` needs no torch."""
