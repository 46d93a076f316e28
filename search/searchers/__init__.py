"""The search algorithms, one file each, behind the protocol in `search/searcher.py`."""
