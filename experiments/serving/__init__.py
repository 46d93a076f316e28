"""Running artifacts in production: how long they take, whether they keep their promises, which policy suits."""
