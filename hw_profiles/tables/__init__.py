"""Kernel tables that ship with the package, named as `trimtab.hw_profiles.kernels.shipped.table_name` says."""
