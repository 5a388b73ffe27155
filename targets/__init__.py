"""Device profiles, legality, cost, lowering and runtimes. Imports `ir` and `passes`."""
