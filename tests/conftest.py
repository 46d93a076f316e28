"""What every test relies on: a cache of its own, few threads, a quiet Ray."""

import os
import tempfile

# set at import, before anything under test reads it
_CACHE = tempfile.TemporaryDirectory(prefix="trimtab-tests-")
os.environ.setdefault("TRIMTAB_CACHE", _CACHE.name)
os.environ.setdefault("OMP_NUM_THREADS", "2")
# threads that spin at a barrier make torch ten times slower as soon as another process wants a core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
