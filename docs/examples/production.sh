#!/bin/sh
# A policy in production: found, published, applied to the next training, verified, promoted, rolled back.
#
#   sh docs/examples/production.sh          needs trimtab[torch,recipes]; writes to the current folder
#
# A step that fails ends the script: trimtab verify exits with 1 where a promise is broken, publish, promote and fetch do
# where a file was altered.
set -eu

examples=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$examples${PYTHONPATH:+:$PYTHONPATH}" # retrained.py stands there
export TRIMTAB_STORE="${TRIMTAB_STORE:-$PWD/store}"      # or s3://bucket/policies

echo "== search once, publish, promote, deploy"
trimtab search "$examples/production.yaml" --runs runs
trimtab publish runs/digits --why "first search"
trimtab promote digits --why "first release"
trimtab fetch digits --out deployed

echo "== the model was trained again: the same policy, no search"
data=trimtab.experiments.datasets:digits
trimtab apply deployed/policy.json --model retrained:again --data "$data" --out retrained
trimtab verify retrained --data "$data"
trimtab publish retrained --name digits --why "second training"
trimtab promote digits --why "second release"
trimtab fetch digits --out deployed

echo "== something is wrong with it: back to the first"
trimtab rollback digits --why "complaints from the field"
trimtab fetch digits --out deployed
trimtab list digits --history
