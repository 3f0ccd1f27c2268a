"""The five services; each is deployed on its own and none imports another."""
