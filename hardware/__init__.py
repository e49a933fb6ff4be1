"""What this machine is: facts, pure parsers of captured texts, probes that never raise."""
