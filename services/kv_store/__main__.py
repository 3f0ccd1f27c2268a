"""`python -m services.kv_store`."""

from deepflow.lifecycle import run
from services.kv_store.config import KvStoreConfig
from services.kv_store.server import KvStoreServer

if __name__ == "__main__":
    run("kv_store", KvStoreConfig, KvStoreServer)
