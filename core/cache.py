"""Where Trimtab keeps what is dear to make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns ``TRIMTAB_CACHE`` where it is set, else ``~/.cache/trimtab``; it need not exist."""
    return Path(os.environ.get("TRIMTAB_CACHE") or Path.home() / ".cache" / "trimtab").expanduser()
