"""A run as a page: one file that works offline, the same page live while a search goes on, and an Optuna study."""
