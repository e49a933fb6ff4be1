"""Official weights to a GGUF build: readers, plan, one-pass writer. Knows no catalogue, hub, store or screen."""
