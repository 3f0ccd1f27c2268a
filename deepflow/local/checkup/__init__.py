"""Whether this machine can run DeepFlow, and what would make it better: for `deepflow doctor`.

Each file reads facts from the machine in functions that decide nothing, and judges them in
functions that read nothing.
"""
