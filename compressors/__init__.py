"""How a policy becomes an artifact: loading, export, fusion, calibration, quantisation, the pipeline."""
