"""Networks, built of the engine's layers."""
