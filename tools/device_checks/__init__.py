"""What `tools/device_smoke.py` runs on a card: operations, a whole model, and open questions."""
