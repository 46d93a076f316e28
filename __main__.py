"""``python -m trimtab``."""

from trimtab.experiments.cli import main

if __name__ == "__main__":
    main()
