"""The Hugging Face Hub: what a repository holds, and its files' bytes, whatever the network does."""
