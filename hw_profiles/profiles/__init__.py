"""Device profiles that ship with the package, one file per device, target and runtime version."""
