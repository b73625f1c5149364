"""Networks, built from the engine's layers, and the text tokenizer."""
