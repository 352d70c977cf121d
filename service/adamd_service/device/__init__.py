"""GPUs: how states live on one and are updated there. Importing this needs no GPU, no driver and no CuPy."""
